// Chromium without a window, and what happens in it.

import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const DEADLINE = 60_000; // ms, for anything that is waited for

/** Calls `use(page, seen)` with an empty page; `seen` collects console errors and failed requests, as texts. */
export async function withPage({ chromium: executablePath, profile }, use) {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    args: FLAGS,
    viewport: { width: 1200, height: 760 },
  });
  context.setDefaultTimeout(DEADLINE);
  try {
    const page = context.pages()[0] ?? (await context.newPage());
    return await use(page, watch(page));
  } finally {
    await context.close();
  }
}

function watch(page) {
  const seen = { errors: [], failed: [] };
  page.on("console", (message) => {
    if (message.type() === "error") seen.errors.push(message.text());
  });
  page.on("pageerror", (error) => seen.errors.push(String(error)));
  page.on("requestfailed", (request) => {
    const reason = request.failure()?.errorText;
    if (reason !== "net::ERR_ABORTED") seen.failed.push(`${reason} ${request.url()}`); // given up: no longer shown
  });
  page.on("response", (response) => {
    if (response.status() >= 400) seen.failed.push(`${response.status()} ${response.url()}`);
  });
  return seen;
}
