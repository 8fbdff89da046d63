// Nodes of a template that say so in their properties are left out where ComfyUI does not have one of them, with their
// links and the group that they alone stand in. So one file shows what newer versions can and opens on older ones, too.
import { app } from "../../scripts/app.js";

const OPTIONAL = "tbac_uniimage_optional";

app.registerExtension({
  name: "tbac_uniimage.optional_nodes",
  beforeConfigureGraph(graph) {
    const known = LiteGraph.registered_node_types;
    const optional = graph.nodes.filter((node) => node.properties?.[OPTIONAL]);
    if (optional.every((node) => node.type in known)) return;

    const gone = new Set(optional.map((node) => node.id));
    const cut = new Set(graph.links.filter((link) => gone.has(link[1]) || gone.has(link[3])).map((link) => link[0]));
    const left = graph.nodes.filter((node) => !gone.has(node.id));
    for (const node of left) {
      for (const slot of node.outputs ?? []) slot.links = slot.links?.filter((link) => !cut.has(link)) ?? null;
      for (const slot of node.inputs ?? []) if (cut.has(slot.link)) slot.link = null;
    }
    graph.groups = graph.groups.filter(({ bounding: [x, y, width, height] }) => {
      const holds = ({ pos }) => pos[0] >= x && pos[1] >= y && pos[0] <= x + width && pos[1] <= y + height;
      return !optional.some(holds) || left.some(holds);
    });
    graph.links = graph.links.filter((link) => !cut.has(link[0]));
    graph.nodes = left;
  },
});
