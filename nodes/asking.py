"""Ask: the language model answers questions about pictures, and its words appear while they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .compat import Schema
from .conditioning import check_mllm, image_inputs, input_pictures
from .display import text_display
from .limits import check, problem
from .loading import MLLM

if TYPE_CHECKING:
    import torch

    from .mllm import LadderMLLM


class LadderAsk(io.ComfyNode):
    """A question about pictures, or about nothing."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageAsk",
            display_name="Ask (TBAC-UniImage)",
            category="TBAC-UniImage",
            description="The same language model that conditions the pictures answers a question about up to "
            "four of them. The answer appears below the node while it is written.",
            search_aliases=["caption", "vqa", "describe image", "image to text", "question", "llm"],
            inputs=[
                MLLM.Input("mllm", tooltip="From Load Model (TBAC-UniImage)."),
                io.String.Input(
                    "question",
                    multiline=True,
                    default="What is in this picture?",
                    tooltip="Plain text, at most 2048 tokens. The same question about the same pictures "
                    "always gets the same answer.",
                ),
                *image_inputs(first_optional=True),
                io.Int.Input(
                    "max_new_tokens",
                    default=128,
                    min=1,
                    max=2048,
                    optional=True,
                    tooltip="Where the answer is cut, in tokens; a token is a short word or a part of one.",
                ),
            ],
            outputs=[io.String.Output(display_name="answer", tooltip="For a prompt, or Preview as Text.")],
            is_output_node=True,  # shows its answer itself, so that a graph may end in it
        )

    @classmethod
    def validate_inputs(cls, question: str | None = None, max_new_tokens: int | None = None) -> bool | str:
        """An empty question is refused before the queue starts."""
        if question is not None and not question.strip():
            return "The question is empty; ask something."
        return problem(cls, max_new_tokens=max_new_tokens) or True

    @classmethod
    def execute(
        cls,
        mllm: LadderMLLM,
        question: str,
        image: torch.Tensor | None = None,
        image_2: torch.Tensor | None = None,
        image_3: torch.Tensor | None = None,
        image_4: torch.Tensor | None = None,
        max_new_tokens: int = 128,
    ) -> io.NodeOutput:
        """Generate the answer, greedily."""
        import comfy.model_management
        import comfy.utils

        check(cls, max_new_tokens=max_new_tokens)
        check_mllm(mllm)
        progress = comfy.utils.ProgressBar(max_new_tokens)
        show = text_display()

        def on_text(text: str) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update(1)
            show(text, False)

        pictures = input_pictures(image, image_2, image_3, image_4)
        answer = mllm.ask(pictures, question, max_new_tokens, on_text).text
        show(answer, True)
        return io.NodeOutput(answer, ui=ui.PreviewText(answer))
