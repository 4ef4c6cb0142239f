// The page's first module: names the version that it is served by.
const about = await (await fetch("page/about.json")).json();
document.querySelector("#main").textContent = `twistedproxy ${about.version}`;
