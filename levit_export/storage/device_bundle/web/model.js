// The ONNX file in ONNX Runtime Web: WebAssembly, one thread, which needs no special headers.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

export const RUNTIME = `onnxruntime-web ${ort.env.versions.web}`;

const WARMUP = 2;
const RUNS = 15;
const LEAST_RUNS = 5;
const PATIENCE_MS = 3000;

/** Let the browser draw: a run keeps the page's only thread. */
export const breathe = () => new Promise((resolve) => setTimeout(resolve, 0));

export class Model {
  constructor(session, manifest) {
    const [input] = manifest.signature.inputs;
    Object.assign(this, { session, input, names: manifest.signature.outputs.map((o) => o.name) });
    this.batch = input.shape[0] ?? 1;
    this.queue = Promise.resolve();
  }

  static async open(buffer, manifest) {
    const options = { executionProviders: ["wasm"] };
    return new Model(await ort.InferenceSession.create(new Uint8Array(buffer), options), manifest);
  }

  /** One run after the other: a session takes no second one meanwhile. */
  run(rows) {
    const done = this.queue.then(() => this.#run(rows));
    this.queue = done.catch(() => {});
    return done;
  }

  /** Outputs {name: {rows, data}} of the inputs, in the model's batch size, the last filled up. */
  async #run(rows) {
    const size = rows[0].length;
    const data = new rows[0].constructor(this.batch * size);
    for (let row = 0; row < this.batch; row++) data.set(rows[Math.min(row, rows.length - 1)], row * size);
    const tensor = new ort.Tensor(this.input.dtype, data, [this.batch, ...this.input.shape.slice(1)]);
    const outputs = await this.session.run({ [this.input.name]: tensor });
    const found = {};
    for (const [name, value] of Object.entries(outputs)) {
      found[name] = { width: value.size / this.batch, data: value.data, type: value.type };
    }
    tensor.dispose();
    return found;
  }

  /** Milliseconds of a run with this input, sorted. */
  async time(row) {
    for (let run = 0; run < WARMUP; run++) await this.run([row]);
    const found = [];
    const start = performance.now();
    while (found.length < RUNS && (found.length < LEAST_RUNS || performance.now() - start < PATIENCE_MS)) {
      await breathe();
      const before = performance.now();
      await this.run([row]);
      found.push(performance.now() - before);
    }
    return found.sort((one, other) => one - other);
  }

  close() {
    return this.queue.then(() => this.session.release());
  }
}

/** Class numbers by falling score with their probabilities; the lower number first when equal. */
export function ranked(outputs, classes) {
  const name = ["logits", "probabilities"].find((each) => each in outputs) ?? Object.keys(outputs)[0];
  const scores = Array.from(outputs[name].data.slice(0, classes));
  if (scores.length !== classes || !scores.every(Number.isFinite)) {
    throw new Error(`The output ${name} is not ${classes} finite numbers.`);
  }
  let shares = scores;
  if (name !== "probabilities") {
    const largest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - largest));
    const sum = powers.reduce((one, other) => one + other);
    shares = powers.map((power) => power / sum);
  }
  const order = scores.map((_, place) => place);
  order.sort((one, other) => scores[other] - scores[one] || one - other);
  return order.map((place) => ({ place, share: shares[place] }));
}
