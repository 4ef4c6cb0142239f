// Opens a slide in dicom-microscopy-viewer, zooms in, opens an overview, and prints what came of it as JSON.
//
// node microscopy.mjs JSON, with {chromium, profile, page, root, headers, screenshot}. `profile`: an empty folder.
// Pictures are kept as `screenshot` + "-whole.png", "-moved.png" and "-overview.png".

import { withPage } from "./chromium.mjs";

const asked = JSON.parse(process.argv[2]);
const ZOOMS = 4;
const QUIET = 1000; // ms: a move has begun to load frames by then, and without a frame under way for so long it is over

async function drawn(page) {
  await page.waitForTimeout(QUIET);
  await page.waitForFunction(
    ([quiet]) => frames.started > 0 && frames.started === frames.ended && performance.now() - frames.last > quiet,
    [QUIET],
    { polling: 100 },
  );
}

const result = await withPage(asked, async (page, seen) => {
  const answers = [];
  page.on("response", (response) => {
    const headers = response.headers();
    if (/\/frames\/|\/rendered/.test(response.url()) && response.request().method() === "GET") {
      answers.push({ url: response.url(), type: headers["content-type"], cacheStatus: headers["cache-status"] });
    }
  });
  await page.goto(asked.page);
  const levels = await page.evaluate(([root, headers]) => openSlide(root, { headers }), [asked.root, asked.headers]);
  await drawn(page);
  await page.screenshot({ path: `${asked.screenshot}-whole.png` });
  await page.mouse.move(600, 380);
  for (let zoom = 0; zoom < ZOOMS; zoom++) {
    await page.mouse.wheel(0, -250);
    await drawn(page);
  }
  await page.screenshot({ path: `${asked.screenshot}-moved.png` });
  const counted = await page.evaluate(() => frames);
  const rendered = page.waitForResponse((response) => response.url().includes("/rendered?viewport="));
  await page.evaluate(() => openOverview());
  await (await rendered).finished();
  await page.waitForTimeout(QUIET);
  await page.screenshot({ path: `${asked.screenshot}-overview.png` });
  return { levels, frames: counted, answers, ...seen };
});
console.log(JSON.stringify(result));
