// The golden vectors, replayed in this browser. Each check is {name, verdict, detail}.

import { decode } from "./decode.js";
import { breathe } from "./model.js";
import { feed, resizeAndCrop } from "./recipe.js";

const pass = (name, detail) => ({ name, verdict: "pass", detail });
const fail = (name, detail) => ({ name, verdict: "fail", detail });

/** The largest difference of two arrays; NaN and another length are infinitely far. */
export function apart(one, other) {
  if (one.length !== other.length || !one.length) return Infinity;
  let largest = 0;
  for (let place = 0; place < one.length; place++) {
    const distance = Math.abs(one[place] - other[place]);
    if (!(distance <= largest)) largest = Number.isNaN(distance) ? Infinity : distance;
  }
  return largest;
}

/** All checks of one artifact, as they are done; `seen` is told every answer of `answers`. */
export async function* check(bundle, model, artifact, seen) {
  for (const each of [decoding, resizing, normalisation]) yield await guarded(each, bundle);
  yield await answers(bundle, model, artifact, seen);
  yield files(bundle);
}

/**
 * Does the model give PyTorch's answers? `seen(row, expected, given)` is told both of each golden
 * row, as outputs {name: {data}}.
 */
export function answers(bundle, model, artifact, seen = () => {}) {
  return guarded(outputs, bundle, model, artifact, seen);
}

const TITLES = new Map([
  [decoding, "Pictures are read as they were saved"],
  [resizing, "Pictures are resized and cropped as in training"],
  [normalisation, "The model is fed the same numbers"],
  [outputs, "The model gives PyTorch's answers"],
]);

async function guarded(each, ...rest) {
  const name = TITLES.get(each);
  try {
    return await each(name, ...rest);
  } catch (error) {
    return fail(name, error.message);
  }
}

/** Compare something for every image; at most `bound` apart in every number. */
async function everyImage(name, images, measure, bound, said) {
  let worst = 0;
  let culprit = "";
  for (const image of images) {
    await breathe();
    const distance = await measure(image);
    if (distance > worst) [worst, culprit] = [distance, image];
  }
  if (!images.length) return { name, verdict: "not run", detail: "the bundle has no images for it" };
  if (worst > bound) return fail(name, `${culprit} is up to ${worst} off, ${said.bound}${said.hint ?? ""}`);
  return pass(name, `${images.length} images, ${said.bound}`);
}

/** The browser's decoder against the pixels of the PNG, which is lossless. */
function decoding(name, bundle) {
  const measure = async (image) => {
    const file = await bundle.file(`golden/images/${image}.png`);
    const found = await decode(new Blob([file], { type: "image/png" }));
    return apart(found.data, (await bundle.image(`golden/pixels/${image}.npy`)).data);
  };
  const images = Object.keys(bundle.described.images);
  const hint = "; some privacy settings of browsers change the pixels that a page reads";
  return everyImage(name, images, measure, 0, { bound: "allowed: 0 of 255 levels", hint });
}

/** This page's resize against Pillow's. */
function resizing(name, bundle) {
  const measure = async (image) => {
    const pixels = await bundle.image(`golden/pixels/${image}.npy`);
    const wanted = await bundle.image(`golden/cropped/${image}.npy`);
    const { resized } = bundle.described.images[image];
    return apart((resized ? resizeAndCrop(bundle.recipe, pixels) : pixels).data, wanted.data);
  };
  const images = Object.keys(bundle.described.images);
  return everyImage(name, images, measure, 0, { bound: "allowed: 0 of 255 levels from Pillow's" });
}

/** This page's normalisation against the golden input. */
async function normalisation(name, bundle) {
  const golden = await rows(bundle);
  const measure = async (image) => {
    const cropped = await bundle.image(`golden/cropped/${image}.npy`);
    return apart(feed(bundle.recipe, bundle.input, cropped), golden[bundle.described.images[image].row]);
  };
  const images = Object.keys(bundle.described.images);
  const fed = images.filter((image) => bundle.described.images[image].row !== null);
  return everyImage(name, fed, measure, 0, { bound: "allowed: 0, the golden tensor to the bit" });
}

/** The rows of the golden input. */
export async function rows(bundle) {
  const { shape, data } = await bundle.array("golden/input.npy");
  const size = data.length / shape[0];
  return Array.from({ length: shape[0] }, (_, row) => data.subarray(row * size, (row + 1) * size));
}

/** Golden inputs through the runtime; each row within its allowance of PyTorch's answer. */
async function outputs(name, bundle, model, artifact, seen) {
  const golden = await rows(bundle);
  const samples = bundle.manifest.golden.samples;
  const reference = {};
  const allowed = {};
  for (const output of model.names) {
    reference[output] = await bundle.array(`golden/${output}.npy`);
    allowed[output] = await bundle.array(`golden/allowed/${artifact.precision}/${output}.npy`);
  }
  let [worst, wrong] = [0, ""];
  for (let start = 0; start < golden.length; start += model.batch) {
    await breathe();
    const piece = golden.slice(start, start + model.batch);
    const found = await model.run(piece);
    for (const output of model.names) {
      if (!found[output]) return fail(name, `the output ${output} is missing`);
      const width = reference[output].data.length / golden.length;
      if (found[output].width !== width) return fail(name, `${output} has ${found[output].width} numbers a row`);
    }
    for (let row = 0; row < piece.length; row++) {
      const [expected, given] = [{}, {}];
      for (const output of model.names) {
        const { width, data } = found[output];
        expected[output] = { data: reference[output].data.subarray((start + row) * width, (start + row + 1) * width) };
        given[output] = { data: data.slice(row * width, (row + 1) * width) };
        const distance = apart(given[output].data, expected[output].data);
        const limit = allowed[output].data[start + row];
        if (distance <= limit) {
          worst = Math.max(worst, distance / limit || 0);
        } else {
          const figures = `${distance.toExponential(2)}, allowed ${limit.toExponential(2)}`;
          wrong ||= `${output} of ${samples[start + row]} is off by ${figures}`;
        }
      }
      seen(start + row, expected, given);
    }
  }
  if (wrong) return fail(name, wrong);
  if (!golden.length || !model.names.length) return fail(name, "nothing was compared");
  const share = `${Math.round(100 * worst)} % of the tolerance`;
  return pass(name, `${golden.length} samples: ${share} (${model.runtime}, ${model.place})`);
}

/** Every file that was read, against bundle.json. */
function files(bundle) {
  const name = "No file was changed";
  if (bundle.altered.size) return fail(name, `not as described: ${[...bundle.altered].join(", ")}`);
  if (!bundle.hashes) {
    return { name, verdict: "not run", detail: "browsers compute SHA-256 on https and localhost only" };
  }
  return pass(name, `${bundle.read.size} read, SHA-256 as in bundle.json`);
}
