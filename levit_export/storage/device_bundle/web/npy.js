// Arrays of the bundle: .npy 1.0, little-endian, in C order (docs/bundle-format.md).

const MAGIC = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0];
const HEADER = /^\{'descr': '([<|][fu]\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \} *\n$/;
const KINDS = { "<f8": Float64Array, "<f4": Float32Array, "|u1": Uint8Array };

/** The array {shape, data} in the bytes of a .npy file; throws for any other form. */
export function parse(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes.length < 10 || !MAGIC.every((byte, place) => bytes[place] === byte)) {
    throw new Error("is not a .npy file of version 1.0");
  }
  const start = 10 + bytes[8] + 256 * bytes[9];
  const found = HEADER.exec(new TextDecoder("latin1").decode(bytes.subarray(10, start)));
  if (!found || !(found[1] in KINDS)) {
    throw new Error("has a header that bundles do not hold");
  }
  const shape = found[2].split(",").filter((text) => text.trim()).map(Number);
  const Kind = KINDS[found[1]];
  const size = shape.reduce((product, side) => product * side, 1);
  if (bytes.length - start !== size * Kind.BYTES_PER_ELEMENT) {
    throw new Error("holds more or fewer numbers than it says");
  }
  // Sliced, because a typed array has to start at a multiple of its element's size.
  return { shape, data: new Kind(buffer.slice(start)) };
}
