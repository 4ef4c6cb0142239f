// Opens a slide in OpenSeadragon, moves about in it with the mouse, and prints what came of it as JSON.
//
// node openseadragon.mjs JSON, with {chromium, profile, page, root, headers, screenshot, views}. `profile`: an empty
// folder. `views`: corners [left, top] in the largest level; what lies right and below is shown pixel by pixel.
// Pictures are kept as `screenshot` + "-moved.png", "-whole.png", and "-0.png" and so on for the views.

import { withPage } from "./chromium.mjs";

const asked = JSON.parse(process.argv[2]);
const ZOOMS = 6;
const PANS = [[-420, 0], [-420, -200], [300, -220], [420, 120], [-300, 260], [0, -300]];

async function drawn(page) {
  // A move is noticed with the next picture, and drawn with the one after that: until then the last move's state is told.
  const pictures = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  await page.evaluate(pictures);
  await page.waitForFunction(() => viewer.world.getItemAt(0).getFullyLoaded() && !viewer.isAnimating(), null, {
    polling: 50,
  });
  await page.evaluate(pictures);
}

async function moveAbout(page) {
  const box = await page.locator("#slide").boundingBox();
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  await page.mouse.move(x - 60, y - 40);
  for (let zoom = 0; zoom < ZOOMS; zoom++) {
    await page.mouse.wheel(0, -240);
    await drawn(page);
  }
  for (const [right, down] of PANS) {
    await page.mouse.move(x, y);
    await page.mouse.down();
    await page.mouse.move(x + right, y + down, { steps: 8 });
    await page.mouse.up();
    await drawn(page);
  }
}

async function showPixels(page, [left, top], picture) {
  const size = await page.evaluate(
    ([x, y]) => {
      const { x: width, y: height } = viewer.viewport.getContainerSize();
      const image = viewer.world.getItemAt(0);
      viewer.viewport.fitBounds(image.imageToViewportRectangle(x, y, width, height), true);
      document.querySelector(".navigator").style.visibility = "hidden"; // it lies over the picture
      return { width, height };
    },
    [left, top],
  );
  await drawn(page);
  await page.locator("#slide canvas").first().screenshot({ path: picture });
  return { left, top, ...size, picture };
}

const result = await withPage(asked, async (page, seen) => {
  await page.goto(asked.page);
  const levels = await page.evaluate(([root, headers]) => openSlide(root, { headers }), [asked.root, asked.headers]);
  await drawn(page);
  await moveAbout(page);
  await page.screenshot({ path: `${asked.screenshot}-moved.png` });
  const views = [];
  for (const [number, corner] of asked.views.entries()) {
    views.push(await showPixels(page, corner, `${asked.screenshot}-${number}.png`));
  }
  await page.evaluate(() => viewer.viewport.goHome(true));
  await drawn(page);
  await page.screenshot({ path: `${asked.screenshot}-whole.png` });
  return { levels, views, tiles: await page.evaluate(() => tiles), ...seen };
});
console.log(JSON.stringify(result));
