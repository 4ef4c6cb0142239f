// Configuration of other viewers with this proxy's address in it. The same as in docs/viewers.md, which says what was tested;
// a test compares the two.

import { h, say } from "./dom.js";

const ADDRESS = "http://127.0.0.1:8080/dicomweb"; // in the texts; replaced by the mount's

const VIEWERS = [
  {
    name: "OHIF",
    note: "app-config.js, in the folder of the built viewer. Start the proxy with --cors-origin and the address at which OHIF is served.",
    code: `window.config = {
  routerBasename: '/',
  extensions: [],
  modes: [],
  customizationService: {},
  showStudyList: true,
  defaultDataSourceName: 'twistedproxy',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'twistedproxy',
      configuration: {
        friendlyName: 'twistedproxy',
        name: 'twistedproxy',
        qidoRoot: 'http://127.0.0.1:8080/dicomweb',
        wadoRoot: 'http://127.0.0.1:8080/dicomweb',
        wadoUriRoot: 'http://127.0.0.1:8080/dicomweb',
        qidoSupportsIncludeField: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'thumbnail',
        thumbnailRequestStrategy: 'fetch',
        enableStudyLazyLoad: true,
        omitQuotationForMultipartRequest: true,
        acceptHeader: ['multipart/related; type=application/octet-stream; transfer-syntax=*'],
        singlepart: 'bulkdata,video',
        bulkDataURI: { enabled: true },
      },
    },
  ],
};
`,
  },
  {
    name: "Slim",
    note: "public/config/local.js of Slim, chosen with REACT_APP_CONFIG=local. This has not been tested. Folders of files and the sample slide are read-only: write: false.",
    code: `window.config = {
  path: '/',
  servers: [
    {
      id: 'twistedproxy',
      url: 'http://127.0.0.1:8080/dicomweb',
      write: true,
    },
  ],
  annotations: [],
};
`,
  },
  {
    name: "cornerstone3D",
    note: "With @cornerstonejs/core, @cornerstonejs/dicom-image-loader and dicomweb-client from npm. Pages of another web address need --cors-origin.",
    code: `import * as core from '@cornerstonejs/core';
import * as imageLoader from '@cornerstonejs/dicom-image-loader';
import { api } from 'dicomweb-client';

const root = 'http://127.0.0.1:8080/dicomweb';
const headers = {}; // { Authorization: 'Bearer …' }

await core.init();
await imageLoader.init({
  beforeSend: () => ({ ...headers, Accept: 'multipart/related; type=application/octet-stream; transfer-syntax=*' }),
});

const client = new api.DICOMwebClient({ url: root, headers });
const instances = await client.retrieveSeriesMetadata({ studyInstanceUID, seriesInstanceUID });
const imageIds = instances
  .sort((a, b) => a['00200013'].Value[0] - b['00200013'].Value[0])
  .map((metadata) => {
    const path = \`studies/\${studyInstanceUID}/series/\${seriesInstanceUID}/instances/\${metadata['00080018'].Value[0]}\`;
    const imageId = \`wadors:\${root}/\${path}/frames/1\`;
    imageLoader.wadors.metaDataManager.add(imageId, metadata);
    return imageId;
  });

const engine = new core.RenderingEngine('engine');
engine.enableElement({ viewportId: 'stack', type: core.Enums.ViewportType.STACK, element });
await engine.getViewport('stack').setStack(imageIds);
`,
  },
  {
    name: "OpenSeadragon",
    note: "With dicomweb_tiles.js, a tile source for DICOMweb, from tests/browser/pages in the source of twistedproxy.",
    code: `const source = await DicomwebTiles.ofSeries('http://127.0.0.1:8080/dicomweb', { study, series, headers });
OpenSeadragon({
  element: document.getElementById('slide'),
  prefixUrl: 'node_modules/openseadragon/build/openseadragon/images/',
  drawer: 'canvas',
  tileSources: source,
});
`,
  },
  {
    name: "dicomweb-client",
    note: "Python: pip install dicomweb-client.",
    code: `from dicomweb_client import DICOMwebClient

client = DICOMwebClient(url="http://127.0.0.1:8080/dicomweb")  # headers={"Authorization": f"Bearer {token}"}
[series] = client.search_for_series(search_filters={"Modality": "SM"})
study, series = series["0020000D"]["Value"][0], series["0020000E"]["Value"][0]
instances = client.search_for_instances(study, series)
largest = max(instances, key=lambda found: found["00280008"]["Value"][0])["00080018"]["Value"][0]

frames = client.retrieve_instance_frames(
    study, series, largest, [792, 793], media_types=(("application/octet-stream", "*"),)
)
print([len(frame) for frame in frames])  # [13708, 12176]
`,
  },
];

/** Draws the configurations for one mount; a list chooses which. */
export function showConnect(main, mounts) {
  document.title = "Connect a viewer – twistedproxy";
  const texts = h("div");
  const fill = (mount) => texts.replaceChildren(...VIEWERS.map((viewer) => section(viewer, mount.url)));
  const select = h("select", { id: "mount", onchange: () => fill(mounts[Number(select.value)]) }, mounts.map(({ url, index }) => h("option", { value: index }, url)));
  main.replaceChildren(
    h("h1", { tabindex: -1 }, "Connect a viewer"),
    h("p", {}, "Viewers talk DICOMweb to this proxy in place of the store. Its address:"),
    h("p", {}, h("label.choice", {}, "Address", select)),
    texts,
  );
  if (mounts.length) fill(mounts[0]);
  else texts.replaceChildren(h("p.state", {}, "This listener has no stores. Open the page at one that has."));
}

function section({ name, note, code }, address) {
  const text = code.replaceAll(ADDRESS, address);
  const copy = h("button", { type: "button", "aria-label": `Copy the configuration for ${name}`, onclick: () => copied(copy, text) }, "Copy");
  return h("section", { "aria-label": name }, h("h2", {}, name, " ", copy), h("p", {}, note), h("pre", { tabindex: 0, "aria-label": `Configuration for ${name}` }, h("code", {}, text)));
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
    button.textContent = "Copied";
  } catch {
    // Without HTTPS a browser may offer no clipboard: the text is selected instead.
    getSelection().selectAllChildren(button.closest("section").querySelector("code"));
    say("Selected: copy it with the keyboard.");
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}
