// From pixels to the model's input, as Pillow and PyTorch do it: to the last bit.
//
// drawImage() resizes otherwise in each browser, so pixels are resampled here. Pillow's method:
// output pixel i is the sum of k_ij * pixel j, with k_ij = f((j - c_i + 1/2) / s) / their sum,
// c_i = (i + 1/2) * input / output and s = max(input / output, 1); columns first, then rows.
// Weights are rounded to 22 binary places and each pass to 8 bits, so that integers do the rest.

const PLACES = 22;
const HALF = 1 << (PLACES - 1);

const FILTERS = {
  bilinear: { radius: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { radius: 2, at: (x) => cubic(Math.abs(x)) },
};

/** Keys' cubic with a = -1/2. */
function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** For each output pixel the first input pixel that counts, and the whole-number weights. */
function taps(input, output, filter) {
  const scale = input / output;
  const stretch = Math.max(scale, 1);
  const support = filter.radius * stretch;
  return Array.from({ length: output }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(input, Math.trunc(centre + support + 0.5));
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let tap = 0; tap < weights.length; tap++) {
      weights[tap] = filter.at((tap + first - centre + 0.5) / stretch);
      sum += weights[tap];
    }
    const whole = Int32Array.from(weights, (weight) => {
      const large = (weight / sum) * 2 ** PLACES;
      return Math.trunc(large < 0 ? large - 0.5 : large + 0.5);
    });
    return { first, weights: whole };
  });
}

/**
 * One pass over `lines` lines of pixels. In and out, a line's neighbours are `line` numbers apart
 * and a pixel's `step` numbers.
 */
function pass(source, from, target, to, lines, channels, every) {
  for (let line = 0; line < lines; line++) {
    for (let place = 0; place < every.length; place++) {
      const { first, weights } = every[place];
      for (let channel = 0; channel < channels; channel++) {
        let sum = HALF;
        let index = line * from.line + first * from.step + channel;
        for (let tap = 0; tap < weights.length; tap++, index += from.step) {
          sum += source[index] * weights[tap];
        }
        // A clamped array would round; >> takes the floor, as Pillow does.
        target[line * to.line + place * to.step + channel] = Math.min(255, Math.max(0, sum >> PLACES));
      }
    }
  }
}

/** An RGB image {width, height, data} at another size. */
export function resize(image, width, height, interpolation) {
  const filter = FILTERS[interpolation];
  let { data } = image;
  if (width !== image.width) {
    const target = new Uint8Array(width * image.height * 3);
    const every = taps(image.width, width, filter);
    pass(data, { line: image.width * 3, step: 3 }, target, { line: width * 3, step: 3 }, image.height, 3, every);
    data = target;
  }
  if (height !== image.height) {
    const target = new Uint8Array(width * height * 3);
    const every = taps(image.height, height, filter);
    const along = { line: 3, step: width * 3 };
    pass(data, along, target, along, width, 3, every);
    data = target;
  }
  return { width, height, data };
}

/** Python's round(): a half goes to the even number. */
function halfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/** What the recipe sees of an RGB image: {width, height, data} of the model's size. */
export function resizeAndCrop(recipe, image) {
  let { width, height } = image;
  if (recipe.resize_mode === "exact") {
    width = height = recipe.resize;
  } else {
    const short = Math.min(width, height);
    [width, height] = [width, height].map((side) => Math.trunc((recipe.resize * side) / short));
  }
  const resized = resize(image, width, height, recipe.interpolation);
  const settle = recipe.centre === "rounded" ? halfToEven : Math.floor;
  return crop(resized, settle((width - recipe.crop) / 2), settle((height - recipe.crop) / 2), recipe.crop);
}

function crop(image, left, top, side) {
  const data = new Uint8Array(side * side * 3);
  for (let row = 0; row < side; row++) {
    const start = ((top + row) * image.width + left) * 3;
    data.set(image.data.subarray(start, start + side * 3), row * side * 3);
  }
  return { width: side, height: side, data };
}

/**
 * The model's input without its batch: (p / 255 - mean) / std in float64, rounded once, NCHW.
 *
 * A model with a uint8 input normalises by itself and takes the pixels as they are.
 */
export function feed(recipe, spec, cropped) {
  const isRaw = spec.dtype === "uint8";
  if (isRaw && spec.shape.at(-1) === 3) return cropped.data;
  const size = cropped.width * cropped.height;
  const planes = isRaw ? new Uint8Array(3 * size) : new Float32Array(3 * size);
  for (let channel = 0; channel < 3; channel++) {
    const mean = recipe.mean[channel];
    const std = recipe.std[channel];
    for (let place = 0; place < size; place++) {
      const value = cropped.data[place * 3 + channel];
      planes[channel * size + place] = isRaw ? value : (value / 255 - mean) / std;
    }
  }
  return planes;
}
