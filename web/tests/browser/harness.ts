// A browser, the built page, and pictures with what `stylize` makes of them.

import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { preview, type PreviewServer } from "vite";

const PYTHON = process.env.PYTHON ?? "python";
const script = (name: string): string => join(import.meta.dirname, name);
const CHROMIUM = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/google-chrome"].find((path) => path && existsSync(path));
export const hasChromium = CHROMIUM !== undefined;
export const WAIT = 300_000; // ms: other programs may have the cores

/** Makes the pictures, once. */
export function makeFixtures(): string {
  const folder = process.env.WEB_FIXTURES ?? mkdtempSync(join(tmpdir(), "web-fixtures-"));
  if (!existsSync(join(folder, "large.stroke.png"))) execFileSync(PYTHON, [script("fixtures.py"), folder], { stdio: "inherit" });
  return folder;
}

export const psnr = (first: string, second: string): number =>
  Number(execFileSync(PYTHON, [script("psnr.py"), first, second], { encoding: "utf8" }));

export const serve = (port = 0): Promise<PreviewServer> =>
  preview({ preview: { port, strictPort: port > 0 }, logLevel: "error" });

export const urlOf = (server: PreviewServer): string => server.resolvedUrls!.local[0]!;

export function launch(...more: string[]): Promise<Browser> {
  const camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"];
  return chromium.launch({ executablePath: CHROMIUM!, args: ["--no-sandbox", ...camera, ...more] });
}

/** Opens the page and waits until it is ready. */
export async function open(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<Page> {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(WAIT);
  await page.goto(url);
  await ready(page);
  return page;
}

export const ready = async (page: Page): Promise<void> => void (await page.waitForSelector("html[data-ready]"));

/** Chooses a photograph and waits for its painting. */
export async function choose(page: Page, file: string): Promise<void> {
  await page.setInputFiles("#file", file);
  await page.waitForSelector("#photo-tools:not([hidden])");
  await painted(page);
}

/** Waits until what is shown is painted. */
export const painted = async (page: Page): Promise<void> =>
  void (await page.waitForSelector("html[data-painted]", { state: "attached" }));

/** Saves the painting as a file. */
export async function save(page: Page, file: string, format = "image/png"): Promise<string> {
  await page.selectOption("#format", format);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  await download.saveAs(file);
  return download.suggestedFilename();
}
