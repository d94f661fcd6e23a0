// An image file to RGB pixels, by the browser's decoder.

export const MOST_PIXELS = 2 ** 26;

/** {width, height, data, transparent} of an image file; its EXIF orientation is applied. */
export async function decode(blob) {
  let bitmap;
  try {
    // Colours stay as they are stored: a training pipeline converts no profiles either.
    bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: "none",
      imageOrientation: "from-image",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Error("This browser cannot read that file as an image. Try a JPEG or PNG.");
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MOST_PIXELS) throw new Error(`${width} x ${height} pixels are too many.`);
    return pixels(bitmap, width, height);
  } finally {
    bitmap.close();
  }
}

function pixels(bitmap, width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error(`This browser has no room for ${width} x ${height} pixels.`);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  let transparent = false;
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
    transparent ||= rgba[from + 3] !== 255;
  }
  return { width, height, data, transparent };
}
