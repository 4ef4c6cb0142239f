// Opens a slide that the page must not get, and prints the errors that the page saw, as JSON.
//
// node refused.mjs JSON, with {chromium, profile, attempts: [{page, root, headers}]}. `profile`: an empty folder.

import { withPage } from "./chromium.mjs";

const asked = JSON.parse(process.argv[2]);
const said = await withPage(asked, async (page) => {
  const errors = [];
  for (const { page: url, root, headers } of asked.attempts) {
    await page.goto(url);
    errors.push(
      await page.evaluate(
        ([service, sent]) => openSlide(service, { headers: sent }).then(() => null, (error) => error.message),
        [root, headers],
      ),
    );
  }
  return errors;
});
console.log(JSON.stringify(said));
