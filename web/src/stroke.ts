// Strokes larger than a model has learned, and underpaintings, as nst_fast/stylizing/stroke.py lays them: the model sees
// the picture made smaller, and what it changed there is enlarged and laid over the luminance of the full photograph.

import type { Picture } from "./pixels";

/** Returns the stroke of a picture that is shown at some of its pixels: strokes of less than 1 cannot be shown. */
export const shownStroke = (stroke: number, shown: number, all: number): number => Math.max(1, stroke * Math.sqrt(shown / all));

/** Returns the size that a model sees of a picture with a stroke. */
export const seenAt = (width: number, height: number, stroke: number): [number, number] => [
  Math.max(1, Math.round(width / stroke)),
  Math.max(1, Math.round(height / stroke)),
];

/** Returns a picture half as wide and high, each pixel the mean of four, or of those that there are. */
export function halved({ width, height, data }: Picture): ImageData {
  const half = new ImageData((width + 1) >> 1, (height + 1) >> 1);
  for (let y = 0, to = 0; y < height; y += 2) {
    for (let x = 0; x < width; x += 2, to += 4) {
      const [right, down] = [x + 1 < width ? 4 : 0, y + 1 < height ? 4 * width : 0];
      const from = 4 * (y * width + x);
      for (let c = from; c < from + 4; c++) {
        half.data[to + c - from] = (data[c]! + data[c + right]! + data[c + down]! + data[c + right + down]! + 2) >> 2;
      }
    }
  }
  return half;
}

const PERIOD = 256; // px, after which grain repeats
const WAVES = 64; // of which it is made
const GRAIN = 2; // of 255, its deviation
let tile: Int8Array | undefined;

/** Returns the tile of grain that `grain` of stroke.py has. */
function grain(): Int8Array {
  const [golden, made] = [Math.PI * (3 - Math.sqrt(5)), new Float64Array(PERIOD * PERIOD)];
  for (let k = 0; k < WAVES; k++) {
    const [turns, angle] = [PERIOD / (8 * 8 ** (k / WAVES)), golden * k];
    const [across, down] = [Math.round(turns * Math.cos(angle)), Math.round(turns * Math.sin(angle))];
    for (let i = 0; i < made.length; i++) {
      const place = (i % PERIOD) * across + Math.floor(i / PERIOD) * down;
      made[i]! += Math.cos((2 * Math.PI * place) / PERIOD + golden * k * k);
    }
  }
  return Int8Array.from(made, (value) => Math.round((GRAIN * value) / Math.sqrt(WAVES / 2)));
}

/** Adds grain to rows of a picture, from top on, in place: a model paints nothing where a photograph is all white. */
export function addGrain({ width, height, data }: Picture, top = 0): void {
  tile ??= grain();
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      const more = tile[((top + y) % PERIOD) * PERIOD + (x % PERIOD)]!;
      for (let c = to; c < to + 3; c++) data[c]! += more;
    }
  }
}

const luminance = (data: ArrayLike<number>, i: number): number => 0.299 * data[i]! + 0.587 * data[i + 1]! + 0.114 * data[i + 2]!; // BT.601

/** Returns what a model changed in a small picture: RGB of the painting less the picture's luminance. */
export function changeOf(small: Picture, painted: Picture): Float32Array {
  const change = new Float32Array(small.width * small.height * 3);
  for (let from = 0, to = 0; to < change.length; from += 4, to += 3) {
    const light = luminance(small.data, from);
    for (let c = 0; c < 3; c++) change[to + c] = painted.data[from + c]! - light;
  }
  return change;
}

/** Returns for positions of a line the four nearest ones of a shorter line, and their bicubic weights (a = −½). */
function taps(first: number, count: number, length: number, shorter: number): [Int32Array, Float32Array] {
  const [places, weights] = [new Int32Array(4 * count), new Float32Array(4 * count)];
  for (let i = 0; i < count; i++) {
    const at = ((first + i + 0.5) * shorter) / length - 0.5;
    const base = Math.floor(at);
    for (let k = 0; k < 4; k++) {
      const d = Math.abs(at - (base + k - 1));
      places[4 * i + k] = Math.min(Math.max(base + k - 1, 0), shorter - 1);
      weights[4 * i + k] = d < 1 ? (1.5 * d - 2.5) * d * d + 1 : ((-0.5 * d + 2.5) * d - 4) * d + 2;
    }
  }
  return [places, weights];
}

/**
 * Paints rows of a photograph, in place: their luminance, and the change of a small picture enlarged.
 * @param rows of the photograph, from top on, of so many in all
 * @param mix 1: the painting; 0: the photograph
 */
export function restoreEdges(
  rows: Picture,
  { top, height }: { top: number; height: number },
  change: Float32Array,
  [columns, lines]: [number, number],
  mix: number,
): void {
  const [across, along] = [taps(0, rows.width, rows.width, columns), taps(top, rows.height, height, lines)];
  const [line, painted] = [new Float32Array(columns * 3), new Uint8ClampedArray(3)];
  for (let y = 0, to = 0; y < rows.height; y++) {
    line.fill(0);
    for (let k = 4 * y; k < 4 * y + 4; k++) {
      const from = along[0][k]! * columns * 3;
      for (let i = 0; i < line.length; i++) line[i]! += along[1][k]! * change[from + i]!;
    }
    for (let x = 0; x < rows.width; x++, to += 4) {
      const light = luminance(rows.data, to);
      for (let c = 0; c < 3; c++) {
        let value = light;
        for (let k = 4 * x; k < 4 * x + 4; k++) value += across[1][k]! * line[across[0][k]! * 3 + c]!;
        painted[c] = value;
      }
      for (let c = 0; c < 3; c++) {
        const photograph = rows.data[to + c]!;
        rows.data[to + c] = mix === 1 ? painted[c]! : Math.trunc(photograph + mix * (painted[c]! - photograph));
      }
    }
  }
}
