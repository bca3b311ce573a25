import { closeSync, mkdtempSync, openSync, readFileSync, readSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { PreviewServer } from "vite";
import { choose, hasChromium, launch, makeFixtures, open, painted, psnr, ready, save, serve, urlOf, WAIT } from "./harness";

const PHOTOGRAPHS = ["coffee", "astronaut", "motorcycle"];
const STYLES = ["starry_night", "the_scream", "great_wave"];
const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const LEAST = 40; // dB
const LEAST_OF_ONE_COLOUR = 25; // dB: norms stretch what rounding leaves, and runtimes round differently

let browser: Browser;
let shared: Page; // of most tests: a new one has to compile onnxruntime-web
let server: PreviewServer;
let url: string;
if (!hasChromium) console.warn("The page is not tested: there is no Chromium; CHROMIUM=PATH names one.");
const folder = hasChromium ? makeFixtures() : "";
const results = mkdtempSync(join(tmpdir(), "web-results-"));
const given = (name: string): string => join(folder, name);
const made = (name: string): string => join(results, name);

beforeAll(async () => {
  if (!hasChromium) return;
  [browser, server] = await Promise.all([launch(), serve()]);
  url = urlOf(server);
  shared = await open(browser, url);
}, WAIT);
afterAll(async () => {
  await browser?.close();
  await server?.close();
});

const pick = (page: Page, style: string): Promise<void> => page.click(`#styles [data-style$="/${style}"]`);
const slide = (page: Page, id: string, value: number): Promise<void> => page.fill(`#${id}`, String(value));
const says = (page: Page, id: string): Promise<string | null> => page.textContent(`#${id}`);
const pixels = (page: Page): Promise<number[]> =>
  page.$eval("#painted", (canvas) => {
    return [...(canvas as HTMLCanvasElement).getContext("2d")!.getImageData(100, 100, 50, 50).data];
  });

describe.skipIf(!hasChromium)("the painting", () => {
  it("is that of `stylize`, on several threads", async () => {
    const page = shared;
    expect(await page.evaluate(() => crossOriginIsolated)).toBe(true);
    expect(await says(page, "threads")).toMatch(/with [2-8] threads/);
    for (const photograph of PHOTOGRAPHS) {
      await choose(page, given(`${photograph}.png`));
      for (const style of STYLES) {
        await pick(page, style);
        const name = `${photograph}.${style}.png`;
        expect(await save(page, made(name))).toBe(name);
        expect(psnr(made(name), given(name)), name).toBeGreaterThan(LEAST);
      }
    }
  });

  it("is that of `stylize`, on one thread, which the page says", async () => {
    const page = await open(browser, url, { serviceWorkers: "block" });
    expect(await page.evaluate(() => crossOriginIsolated)).toBe(false);
    expect(await says(page, "threads")).toMatch(/one thread/);
    for (const [i, photograph] of PHOTOGRAPHS.entries()) {
      await choose(page, given(`${photograph}.png`));
      await pick(page, STYLES[i]!);
      const name = `${photograph}.${STYLES[i]}.png`;
      await save(page, made(name));
      expect(psnr(made(name), given(name)), name).toBeGreaterThan(LEAST);
    }
    await page.context().close();
  });

  it("is that of `stylize` for a turned JPEG, 16 bits a colour, six pixels and one, and in tiles", async () => {
    const page = shared;
    await pick(page, "starry_night");
    for (const file of ["turned.jpg", "deep.png", "six.png", "dot.png", "large.png"]) {
      await choose(page, given(file));
      const name = `${file.split(".")[0]}.starry_night.png`;
      await save(page, made(name));
      expect(psnr(made(name), given(name)), name).toBeGreaterThan(file === "dot.png" ? LEAST_OF_ONE_COLOUR : LEAST);
    }
  });

  it("is weaker where the slider says so, on the page and in the file, and a JPEG where that is asked for", async () => {
    const page = shared;
    await pick(page, "great_wave");
    await choose(page, given("coffee.png"));
    const shown = [];
    for (const value of [100, 80, 60, 40, 20, 0]) {
      await slide(page, "strength", value);
      await painted(page);
      shown.push(await pixels(page));
    }
    const photograph = shown.at(-1)!;
    const change = shown.map((picture) => picture.reduce((sum, value, i) => sum + Math.abs(value - photograph[i]!), 0));
    for (const [i, less] of change.slice(1).entries()) expect(less).toBeLessThan(0.95 * change[i]!);
    const own = await page.$eval("#photograph", (canvas) => [...(canvas as HTMLCanvasElement).getContext("2d")!.getImageData(100, 100, 50, 50).data]);
    expect(photograph).toEqual(own);
    await slide(page, "strength", 40);
    await save(page, made("weak.png"));
    expect(psnr(made("weak.png"), given("coffee.great_wave.40.png"))).toBeGreaterThan(LEAST);
    expect(await save(page, made("weak.jpg"), "image/jpeg")).toBe("coffee.great_wave.jpg");
    expect(readFileSync(made("weak.jpg")).subarray(0, 3).toString("hex")).toBe("ffd8ff");
    expect(psnr(made("weak.jpg"), given("coffee.great_wave.40.png"))).toBeGreaterThan(30);
    await slide(page, "strength", 100);
  });

  it("is a blend of several styles, whole and in tiles, with strength and larger strokes", async () => {
    const page = await open(browser, url);
    await pick(page, "starry_night");
    await page.check("#several");
    await pick(page, "great_wave");
    await slide(page, "weight-starry_night", 75);
    await slide(page, "weight-great_wave", 25);
    await slide(page, "strength", 50);
    for (const name of ["coffee", "large"]) {
      await choose(page, given(`${name}.png`));
      await save(page, made(`${name}.blend.png`));
      expect(psnr(made(`${name}.blend.png`), given(`${name}.blend.png`)), name).toBeGreaterThan(LEAST);
    }
    await slide(page, "stroke", 10);
    await save(page, made("large.stroke.png"));
    // Browsers make pictures smaller in another way.
    expect(psnr(made("large.stroke.png"), given("large.stroke.png"))).toBeGreaterThan(30);
    expect(psnr(made("large.blend.png"), given("large.stroke.png"))).toBeLessThan(30);
    await page.context().close();
  });
});

describe.skipIf(!hasChromium)("the page", () => {
  it("says in one line what it cannot read, and keeps what it has", async () => {
    const page = shared;
    await choose(page, given("coffee.png"));
    const before = await pixels(page);
    for (const [file, told] of [["phone.heic", /cannot read HEIC pictures.*JPEG or PNG/], ["notes.png", /cannot read this picture/]] as const) {
      await page.setInputFiles("#file", given(file));
      await page.waitForFunction(() => document.getElementById("error")!.textContent);
      expect(await says(page, "error")).toMatch(told);
    }
    expect(await pixels(page)).toEqual(before);
  });

  it("shows progress of a large picture, which can be cancelled", async () => {
    const page = shared;
    await choose(page, given("large.png"));
    await page.click("#download");
    await page.waitForFunction(() => document.querySelector<HTMLProgressElement>("#progress")!.value > 0.05);
    expect(await says(page, "doing")).toBe("Painting");
    await page.click("#cancel");
    await page.waitForSelector("#work", { state: "hidden" });
    expect(await says(page, "status")).toBe("Cancelled; nothing was saved.");
    expect(await page.isEnabled("#download")).toBe(true);
  });

  it("takes what is dropped and pasted", async () => {
    const page = shared;
    for (const kind of ["drop", "paste"]) {
      const bytes = [...readFileSync(given("dot.png"))];
      await page.evaluate(([kind, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes as number[])], "dot.png", { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        document.dispatchEvent(
          kind === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: data })
            : new ClipboardEvent("paste", { ...options, clipboardData: data }),
        );
      }, [kind, bytes] as const);
      await painted(page);
      expect(await page.$eval("#size", (size) => (size as HTMLSelectElement).selectedOptions[0]!.text)).toBe("1 × 1");
    }
  });

  it("is worked by keys alone", async () => {
    const page = shared;
    await choose(page, given("coffee.png"));
    await page.focus("#divider");
    for (let i = 0; i < 10; i++) await page.keyboard.press("ArrowRight");
    expect(await page.$eval("#frame", (frame) => frame.style.getPropertyValue("--shown"))).toBe("10%");
    await page.keyboard.press("Tab");
    const style = await page.evaluate(() => (document.activeElement as HTMLElement).dataset.style);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    const pressed = await page.$eval("#styles [aria-pressed=true]", (button) => (button as HTMLElement).dataset.style);
    expect(pressed).not.toBe(style);
    await painted(page);
  });

  it("has no fault that axe-core finds: wide and narrow, light and dark, empty, painted and with the camera", async () => {
    const faults = async (page: Page): Promise<string[]> => {
      await page.addScriptTag({ path: AXE });
      return page.evaluate(async () => {
        const { violations } = await (globalThis as unknown as { axe: typeof import("axe-core") }).axe.run();
        return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join()}`);
      });
    };
    for (const [colorScheme, width] of [["light", 1280], ["dark", 360]] as const) {
      const page = await open(browser, url, { colorScheme, viewport: { width, height: 800 } });
      expect(await faults(page)).toEqual([]);
      await choose(page, given("coffee.png"));
      expect(await faults(page)).toEqual([]);
      await page.click("#photo-tools [data-do=camera]");
      await page.waitForSelector("#camera-tools:not([hidden])");
      expect(await faults(page)).toEqual([]);
      expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)).toBe(true);
      await page.context().close();
    }
  });

  it("works offline once it has painted, with the other styles, too", async () => {
    const own = await serve();
    const page = await open(browser, urlOf(own));
    await choose(page, given("dot.png"));
    await page.waitForSelector("html[data-offline]", { state: "attached" });
    await own.close();
    await page.reload();
    await ready(page);
    await pick(page, "the_scream");
    await choose(page, given("coffee.png"));
    await save(page, made("offline.png"));
    expect(psnr(made("offline.png"), given("coffee.the_scream.png"))).toBeGreaterThan(LEAST);
    await page.context().close();
  });
});

describe.skipIf(!hasChromium)("the camera", () => {
  it("is painted live, follows the sliders, is recorded, and gives a photograph", async () => {
    const page = shared;
    await page.click("[data-do=camera]:visible");
    await page.waitForFunction(() => /frames a second/.test(document.getElementById("status")!.textContent!));
    await pick(page, "the_scream");
    await slide(page, "strength", 50);
    await page.click("#record");
    await page.waitForTimeout(2500);
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#record")]);
    expect(download.suggestedFilename()).toBe("camera.the_scream.webm");
    await download.saveAs(made("camera.webm"));
    const [head, file] = [Buffer.alloc(4), openSync(made("camera.webm"), "r")];
    readSync(file, head);
    closeSync(file);
    expect(head.toString("hex")).toBe("1a45dfa3"); // EBML, RFC 8794
    await page.click("#shoot");
    const shot = (): boolean => document.querySelector<HTMLSelectElement>("#size")!.options[0]!.text === "1280 × 720";
    await page.waitForFunction(shot); // what was painted before is shown until the photograph is there
    await painted(page);
  });

  it("says when it is refused", async () => {
    const refusing = await launch("--deny-permission-prompts");
    const page = await open(refusing, url, { permissions: [] });
    await page.evaluate(() => {
      // Chromium's flags grant the fake camera to everyone; this is what a refusal gives.
      navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", "NotAllowedError"));
    });
    await page.click("#empty [data-do=camera]");
    await page.waitForFunction(() => document.getElementById("error")!.textContent);
    expect(await says(page, "error")).toMatch(/camera was refused/);
    expect(await page.isVisible("#empty")).toBe(true);
    await refusing.close();
  });
});
