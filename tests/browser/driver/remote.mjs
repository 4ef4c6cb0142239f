// A browser that does what it is told: reads a command as a line of JSON, prints what came of it as a line of JSON.
//
// node remote.mjs JSON, with {browser: "chrome" or "firefox", program, profile, width, height, dark, still}. Commands
// are {name: arguments}, see `commands`; answers {"result": …} or {"error": "…"}. The end of the input ends the browser.

import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import puppeteer from "puppeteer-core";

const CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-precise-memory-info", "--js-flags=--expose-gc"];
const DEADLINE = 60_000; // ms, for anything that is waited for

const asked = JSON.parse(process.argv[2]);
const firefox = asked.browser === "firefox";
const browser = await puppeteer.launch({
  browser: asked.browser,
  executablePath: asked.program,
  userDataDir: asked.profile,
  headless: true,
  args: firefox ? [] : CHROMIUM_FLAGS,
  extraPrefsFirefox: { "ui.systemUsesDarkTheme": asked.dark ? 1 : 0, "ui.prefersReducedMotion": asked.still ? 1 : 0 },
});
const page = await browser.newPage();
page.setDefaultTimeout(DEADLINE);
await page.setViewport({ width: asked.width, height: asked.height });
if (!firefox) {
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: asked.dark ? "dark" : "light" },
    { name: "prefers-reduced-motion", value: asked.still ? "reduce" : "no-preference" },
  ]);
}

const seen = { errors: [], failed: [] };
page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
page.on("pageerror", (error) => seen.errors.push(String(error)));
page.on("response", (response) => response.status() >= 400 && seen.failed.push(`${response.status()} ${response.url()}`));

const commands = {
  version: () => browser.version(),
  authenticate: ({ username, password }) => page.authenticate({ username, password }),
  /** A function body that runs in each document before its own scripts. */
  before: (body) => page.evaluateOnNewDocument(body).then(() => null),
  goto: (url) => page.goto(url).then(() => null),
  /** A function body, with what it returns. */
  evaluate: (body) => page.evaluate(`(async () => { ${body} })()`),
  /** An expression that becomes true. */
  wait: (expression) => page.waitForFunction(expression, { polling: 50 }).then(() => null),
  press: async (keys) => {
    for (const key of [keys].flat()) await page.keyboard.press(key);
  },
  wheel: async ([x, y, steps]) => {
    await page.mouse.move(x, y);
    await page.mouse.wheel({ deltaY: steps * 100 });
  },
  drag: async ([x, y, right, down]) => {
    await page.mouse.move(x, y);
    await page.mouse.down();
    await page.mouse.move(x + right, y + down, { steps: 6 });
    await page.mouse.up();
  },
  click: ([x, y, count = 1]) => page.mouse.click(x, y, { count }),
  screenshot: (path) => page.screenshot({ path }).then(() => null),
  /** axe-core's findings. Its text is evaluated, not put into the page, whose policy forbids that. */
  axe: async () => {
    const source = readFileSync("node_modules/axe-core/axe.min.js", "utf8");
    const { violations } = await page.evaluate(`(async () => { ${source}; return await axe.run(); })()`);
    return violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.map(({ html, failureSummary }) => `${html}: ${failureSummary}`).slice(0, 3) }));
  },
  /** Bytes of the page's heap after a collection; Chromium only. */
  heap: async () => {
    if (firefox) return null;
    const session = await page.createCDPSession();
    await session.send("HeapProfiler.collectGarbage");
    const { usedSize } = await session.send("Runtime.getHeapUsage");
    await session.detach();
    return usedSize;
  },
  /** What the browser complained of since the last time. */
  trouble: () => {
    const { errors, failed } = seen;
    return { errors: errors.splice(0), failed: failed.splice(0) };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [[name, argument]] = Object.entries(JSON.parse(line));
  let answer;
  try {
    answer = { result: (await commands[name](argument)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
