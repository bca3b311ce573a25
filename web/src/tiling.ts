// Tiles of a picture, and what instance norms need of them: as nst_fast/stylizing/tiling.py does it.

import type { Axis } from "./models";

export interface Box {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

export interface Tile {
  core: Box; // what is kept of it
  seen: Box; // what is looked at for it
  lastColumn: boolean;
  lastRow: boolean;
}

/** Mean and variance of every channel over the pixels of one tile. */
export interface Statistics {
  pixels: number;
  mean: Float32Array;
  variance: Float32Array;
}

export const area = (box: Box): number => (box.right - box.left) * (box.bottom - box.top);

/** Returns tiles that cover a picture, row by row, all of about the same size; cores start at multiples of stride. */
export function tilesOf(width: number, height: number, side: number, stride: number, halo: number): Tile[] {
  const step = Math.max(2, Math.floor(side / stride)) * stride;
  const edges = (length: number): number[] => {
    const count = Math.ceil(length / step);
    const starts = Array.from({ length: count }, (_, i) => Math.round((i * length) / count / stride) * stride);
    return [...starts, length];
  };
  const [rows, columns] = [edges(height), edges(width)];
  return rows.slice(1).flatMap((bottom, row) =>
    columns.slice(1).map((right, column) => {
      const [left, top] = [columns[column]!, rows[row]!];
      return {
        core: { left, top, right, bottom },
        seen: {
          left: Math.max(0, left - halo),
          top: Math.max(0, top - halo),
          right: Math.min(width, right + halo),
          bottom: Math.min(height, bottom + halo),
        },
        lastColumn: right === width,
        lastRow: bottom === height,
      };
    }),
  );
}

/** Returns at most so many of the tiles, spread evenly: multiples of the golden ratio are, however long a row is. */
export function sampleOf(tiles: Tile[], most: number): Tile[] {
  const place = (i: number): number => (i * 0.6180339887) % 1;
  const order = tiles.map((_, i) => i).sort((a, b) => place(a) - place(b));
  return order.slice(0, Math.max(1, Math.floor(most))).map((i) => tiles[i]!);
}

/** Returns the half-open range of a map's indices whose centres lie in the pixels [start, end), null being the edge. */
export function indicesOf(axis: Axis, start: number, end: number | null): [number, number] {
  const first = (pixel: number): number => Math.ceil((pixel - axis.centre) / axis.step);
  return [start === 0 ? 0 : Math.max(0, first(start)), end === null ? 2 ** 31 : first(end)];
}

/** Returns what a norm multiplies by and adds, from the statistics of tiles (Chan, Golub, LeVeque 1983). */
export function normOf(counted: Statistics[], epsilon: number): { factor: Float32Array; offset: Float32Array } {
  const all = counted.reduce((sum, { pixels }) => sum + pixels, 0);
  const channels = counted[0]!.mean.length;
  const [factor, offset] = [new Float32Array(channels), new Float32Array(channels)];
  for (let c = 0; c < channels; c++) {
    let [mean, variance] = [0, 0];
    for (const tile of counted) mean += (tile.pixels / all) * tile.mean[c]!;
    for (const tile of counted) variance += (tile.pixels / all) * (tile.variance[c]! + (tile.mean[c]! - mean) ** 2);
    factor[c] = 1 / Math.sqrt(variance + epsilon);
    offset[c] = -mean / Math.sqrt(variance + epsilon);
  }
  return { factor, offset };
}
