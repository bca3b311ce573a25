import { describe, expect, it } from "vitest";
import { area, indicesOf, normOf, sampleOf, type Statistics, tilesOf } from "../../src/tiling";

describe("tiles", () => {
  it.each([
    [1, 1],
    [511, 513],
    [1210, 817],
    [6000, 4000],
  ])("of %d × %d cover each pixel once, see the halo, and begin at multiples of the stride", (width, height) => {
    const tiles = tilesOf(width, height, 512, 4, 48);
    const columns = new Map<string, number>();
    for (const { core, seen, lastColumn, lastRow } of tiles) {
      expect(core.left % 4 || core.top % 4).toBe(0);
      expect(Math.max(core.right - core.left, core.bottom - core.top)).toBeLessThanOrEqual(516);
      expect(seen.left).toBe(Math.max(0, core.left - 48));
      expect(seen.bottom).toBe(Math.min(height, core.bottom + 48));
      expect([lastColumn, lastRow]).toEqual([core.right === width, core.bottom === height]);
      const key = `${core.left} ${core.top}`;
      columns.set(key, (columns.get(key) ?? 0) + 1);
    }
    expect(tiles.reduce((sum, { core }) => sum + area(core), 0)).toBe(width * height);
    expect([...columns.values()].every((count) => count === 1)).toBe(true);
    const contains = (x: number, y: number): number =>
      tiles.filter(({ core }) => core.left <= x && x < core.right && core.top <= y && y < core.bottom).length;
    for (let i = 0; i < 50; i++) expect(contains((i * 7919) % width, (i * 104729) % height)).toBe(1);
  });

  it("are sampled from all over the picture", () => {
    const tiles = tilesOf(4096, 4096, 64, 4, 48);
    const some = sampleOf(tiles, 64);
    expect(new Set(some).size).toBe(64);
    const quarters = [0, 0, 0, 0];
    for (const { core } of some) quarters[(core.left >= 2048 ? 1 : 0) + (core.top >= 2048 ? 2 : 0)]!++;
    expect(Math.min(...quarters)).toBeGreaterThan(10);
    expect(sampleOf(tiles, 0.2)).toHaveLength(1);
  });
});

describe("a map's indices", () => {
  it("of neighbouring tiles meet and count each centre once", () => {
    const axis = { step: 4, centre: -6.5 };
    const counted: number[] = [];
    for (const [start, end] of [[0, 512], [512, 1024], [1024, null]] as const) {
      // As a tile at the origin would count them: 2 ** 31 stands for the map's end, here of 300.
      const [from, to] = indicesOf(axis, start, end);
      for (let i = from; i < Math.min(to, 300); i++) counted.push(i);
    }
    expect(counted).toEqual(Array.from({ length: 300 }, (_, i) => i));
    for (const i of counted.slice(0, 100)) {
      const inFirst = axis.step * i + axis.centre < 512;
      expect(indicesOf(axis, 0, 512)[1] > i).toBe(inFirst);
    }
  });
});

describe("a norm from tiles", () => {
  it("is that of all their pixels together", () => {
    const numbers = Array.from({ length: 1000 }, (_, i) => Math.sin(i * i) * 3 + (i > 300 ? 2 : 0));
    const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = (values: number[]): number => mean(values.map((value) => (value - mean(values)) ** 2));
    const counted = [numbers.slice(0, 100), numbers.slice(100, 730), numbers.slice(730)].map<Statistics>((part) => ({
      pixels: part.length,
      mean: Float32Array.of(mean(part)),
      variance: Float32Array.of(variance(part)),
    }));
    const { factor, offset } = normOf(counted, 1e-5);
    expect(factor[0]).toBeCloseTo(1 / Math.sqrt(variance(numbers) + 1e-5), 5);
    expect(offset[0]! / factor[0]!).toBeCloseTo(-mean(numbers), 5);
  });
});
