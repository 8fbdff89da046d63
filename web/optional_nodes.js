// A node of a template that says so in its properties is left out where ComfyUI does not have it, with its links and
// the group that it alone stands in. So one file shows what newer versions can and opens on older ones as well.
import { app } from "../../scripts/app.js";

const OPTIONAL = "tbac_uniimage_optional";

app.registerExtension({
  name: "tbac_uniimage.optional_nodes",
  beforeConfigureGraph(graph) {
    const known = LiteGraph.registered_node_types;
    const missing = graph.nodes.filter((node) => node.properties?.[OPTIONAL] && !(node.type in known));
    if (!missing.length) return;

    const gone = new Set(missing.map((node) => node.id));
    const cut = new Set(graph.links.filter((link) => gone.has(link[1]) || gone.has(link[3])).map((link) => link[0]));
    const left = graph.nodes.filter((node) => !gone.has(node.id));
    for (const node of left) {
      for (const slot of node.outputs ?? []) slot.links = slot.links?.filter((link) => !cut.has(link)) ?? null;
      for (const slot of node.inputs ?? []) if (cut.has(slot.link)) slot.link = null;
    }
    graph.groups = graph.groups.filter(({ bounding: [x, y, width, height] }) => {
      const holds = ({ pos }) => pos[0] >= x && pos[1] >= y && pos[0] <= x + width && pos[1] <= y + height;
      return !missing.some(holds) || left.some(holds);
    });
    graph.links = graph.links.filter((link) => !cut.has(link[0]));
    graph.nodes = left;
  },
});
