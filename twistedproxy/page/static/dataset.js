// Values of DICOM JSON (PS3.18 annex F): attributes by tag, as text and numbers. Pure.

export const values = (dataset, tag) => dataset?.[tag]?.Value ?? [];
export const first = (dataset, tag) => values(dataset, tag)[0];

/** A number, or undefined; DS and IS may come as strings. */
export function number(dataset, tag, index = 0) {
  const value = values(dataset, tag)[index];
  const found = value === null || value === "" ? NaN : Number(value);
  return Number.isFinite(found) ? found : undefined;
}

/** Text of any simple value; "" where there is none. */
export function text(dataset, tag) {
  return values(dataset, tag)
    .filter((value) => value !== null && value !== "")
    .map((value) => (typeof value === "object" ? name(value) : String(value)))
    .join(", ");
}

const name = (person) =>
  (person.Alphabetic ?? person.Ideographic ?? person.Phonetic ?? "").split("^").filter(Boolean).join(", ");

/** A date (DA) as 2026-01-31. */
export const date = (dataset, tag) => text(dataset, tag).replace(/^(\d{4})(\d\d)(\d\d)$/, "$1-$2-$3");

/** An item of nested sequences: item(dataset, "52009229", "00289110") is the first one of each; {} where one is missing. */
export const item = (dataset, ...tags) => tags.reduce((found, tag) => first(found, tag) ?? {}, dataset);

export const SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"; // VL Whole Slide Microscopy Image Storage
export const INSTANCE = "00080018";
export const SHARED = "52009229";
export const PER_FRAME = "52009230";
const JPEG_BASELINE = "1.2.840.10008.1.2.4.50";

/** Whether a browser shows the stored frames as they should be shown: 8-bit JPEG whose components say what they are. */
export function browserShows(dataset) {
  const colors = text(dataset, "00280004");
  return text(dataset, "00083002").split(", ").includes(JPEG_BASELINE) && /^YBR_/.test(colors);
}

/** Rows and columns of an image's frames, or undefined if it is no image. */
export function frameSize(dataset) {
  const [rows, columns] = [number(dataset, "00280010"), number(dataset, "00280011")];
  return rows > 0 && columns > 0 ? { rows, columns } : undefined;
}

/** Distance of pixels in mm, {x, y}, or undefined. */
export function spacing(dataset) {
  const shared = item(dataset, SHARED, "00289110");
  const frames = item(dataset, PER_FRAME, "00289110");
  for (const [place, tag] of [[shared, "00280030"], [frames, "00280030"], [dataset, "00280030"], [dataset, "00181164"]]) {
    const [y, x] = [number(place, tag, 0), number(place, tag, 1)];
    if (x > 0 && y > 0) return { x, y };
  }
  return undefined;
}
