import { createHash } from "node:crypto";
import { readdirSync, statSync } from "node:fs";
import { defineConfig, type Plugin } from "vite";

const WASM = "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm";
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Tells the service worker which files the page is made of, and the version that they make together. */
const offline: Plugin = {
  name: "offline",
  generateBundle: {
    order: "post",
    handler(_, bundle) {
      const files = [...Object.keys(bundle), ...readdirSync("public").filter((name) => statSync(`public/${name}`).isFile())];
      const shell = ["./", "models/models.json", ...files.filter((name) => !/\.wasm$|^index\.html$|^sw\.js$/.test(name))];
      const worker = bundle["sw.js"];
      if (worker?.type !== "chunk") throw new Error("there is no service worker");
      const version = createHash("sha256").update(shell.sort().join()).digest("hex").slice(0, 8);
      worker.code = worker.code.replace("__SHELL__", JSON.stringify(shell)).replace("__VERSION__", JSON.stringify(version));
    },
  },
};

export default defineConfig({
  base: "./",
  plugins: [offline],
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "development|production"] },
  define: { __WASM_BYTES__: statSync(WASM).size },
  worker: { format: "es" },
  server: { headers: ISOLATED },
  preview: { headers: {} }, // as a host that gives none
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    rolldownOptions: {
      input: { index: "index.html", sw: "src/service_worker.ts" },
      output: { entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js") },
    },
  },
});
