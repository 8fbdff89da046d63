// Nodes that end in a text keep it in sight. While it is written, ComfyUI's page shows it as progress text, which
// newer pages clear when the job ends; and what ui.PreviewText sends they draw for their own preview node alone.
import { app } from "../../scripts/app.js";

const LABELS = {
  TBACUniImageAsk: "answer",
  TBACUniImageSaveConditioning: "file",
  TBACUniImageLoadConditioning: "note",
};
const OURS = "shown_text";
const LIVE = "$$node-text-preview"; // the page's widget for progress text

app.registerExtension({
  name: "tbac_uniimage.shown_text",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const label = LABELS[nodeData.name];
    if (!label) return;

    const { onNodeCreated, onExecuted } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...args) {
      onNodeCreated?.apply(this, args);
      const { widget } = app.widgets.STRING(this, OURS, ["STRING", { multiline: true }], app);
      widget.label = label;
      widget.serialize = false; // neither in a saved workflow
      widget.options.serialize = false; // nor in what is sent
      widget.options.read_only = true;
      const element = widget.element ?? widget.inputEl;
      if (element) {
        element.readOnly = true;
        element.placeholder = "";
      }
    };
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      const live = this.widgets.find((widget) => widget.name === LIVE);
      if (live) this.removeWidget(live); // older pages keep it
      this.widgets.find((widget) => widget.name === OURS).value = (output?.text ?? []).join("\n");
    };
  },
});
