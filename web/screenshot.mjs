// Draws the README's picture of the page: node screenshot.mjs → ../docs/images/web.jpg. First `npm run build`.

import { chromium } from "playwright-core";
import { preview } from "vite";

const server = await preview({ preview: { port: 0 }, logLevel: "error" });
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 900, height: 650 } });
page.setDefaultTimeout(300_000);
await page.goto(server.resolvedUrls.local[0]);
await page.waitForSelector("html[data-ready]");
await page.click('#styles [data-style$="/starry_night"]');
await page.click("[data-do=cat]");
await page.waitForSelector("html[data-painted]", { state: "attached" });
await page.fill("#divider", "45");
await page.screenshot({ path: "../docs/images/web.jpg", type: "jpeg", quality: 85 });
await browser.close();
await server.close();
process.exit();
