// One picture from the camera. The stream is open only while it is seen on the page.

/** Whether the browser lends pages a camera: on https and on localhost alone. */
export const hasCamera = Boolean(navigator.mediaDevices?.getUserMedia);

export class Camera {
  constructor(video) {
    Object.assign(this, { video, stream: null });
  }

  async open() {
    try {
      const wanted = { video: { facingMode: "environment" }, audio: false };
      this.stream = await navigator.mediaDevices.getUserMedia(wanted);
    } catch (error) {
      throw new Error(`The camera cannot be used: ${error.message}`);
    }
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  /** What is seen now, as a lossless file. */
  async picture() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: this.video.videoWidth, height: this.video.videoHeight });
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (!blob) throw new Error("The camera gave no picture.");
    return blob;
  }

  close() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    Object.assign(this, { stream: null });
    this.video.srcObject = null;
  }
}
