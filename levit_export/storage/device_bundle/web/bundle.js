// The bundle that this page is part of: its descriptions and files, each held against its hash.

import { parse } from "./npy.js";

const ROOT = new URL("../", import.meta.url);

async function bytes(name) {
  const address = new URL(name.split("/").map(encodeURIComponent).join("/"), ROOT);
  const answer = await fetch(address, { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name} cannot be had: the server answered ${answer.status}.`);
  return answer.arrayBuffer();
}

const json = (buffer) => JSON.parse(new TextDecoder().decode(buffer));

async function sha256(buffer) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Everything the page reads; `altered` names the files that are not as described. */
export class Bundle {
  constructor(described) {
    Object.assign(this, { described, altered: new Set(), read: new Set() });
  }

  static async open() {
    const described = json(await bytes("bundle.json"));
    if (described.format !== "levit-export bundle" || described.schema !== 1) {
      throw new Error("bundle.json is not of bundle format 1.");
    }
    const bundle = new Bundle(described);
    bundle.manifest = json(await bundle.file("manifest.json"));
    return bundle;
  }

  get recipe() {
    return this.manifest.model.preprocessing;
  }

  get input() {
    return this.manifest.signature.inputs[0];
  }

  get labels() {
    return this.manifest.model.labels;
  }

  get artifacts() {
    return this.manifest.artifacts.filter((artifact) => artifact.format === "onnx");
  }

  /** Whether this browser can hash: it does so on https and on localhost alone. */
  get hashes() {
    return Boolean(globalThis.crypto?.subtle);
  }

  /** A file's bytes, whose hash is compared where the browser can do it. */
  async file(name) {
    const buffer = await bytes(name);
    const wanted = this.described.files[name];
    const isRight = wanted && wanted.bytes === buffer.byteLength;
    if (!isRight || (this.hashes && (await sha256(buffer)) !== wanted.sha256)) this.altered.add(name);
    this.read.add(name);
    return buffer;
  }

  async array(name) {
    try {
      return parse(await this.file(name));
    } catch (error) {
      throw new Error(`${name} ${error.message}`);
    }
  }

  /** The SHA-256 that names this bundle: that of bundle.json, as SHA256SUMS has it. */
  async hash() {
    const lines = new TextDecoder().decode(await bytes("SHA256SUMS")).split("\n");
    const line = lines.find((each) => each.slice(66) === "bundle.json");
    if (!line) throw new Error("SHA256SUMS does not name bundle.json.");
    return line.slice(0, 64);
  }

  /** A golden image as an RGB image; grey is repeated over the channels. */
  async image(name) {
    const { shape, data } = await this.array(name);
    const [height, width] = shape;
    if (shape.length === 3) return { width, height, data };
    const rgb = new Uint8Array(3 * data.length);
    data.forEach((value, place) => rgb.fill(value, 3 * place, 3 * place + 3));
    return { width, height, data: rgb };
  }
}
