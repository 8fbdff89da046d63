"""Save and Load Conditioning: what the language model thought, in one small file."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from .compat import Schema
from .display import text_display

FOLDER = "conditioning"  # where Load Conditioning looks, in ComfyUI's output and input folders


def inside(base: str, name: str) -> Path:
    """A path in one of ComfyUI's folders. Raises ValueError if ``name`` leads out of it."""
    from ..core.paths import user_path

    folder = Path(base).resolve()
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, a circle of links
        path = Path()
    if not path.is_relative_to(folder) or path == folder:
        raise ValueError(f"{name!r} is no file inside ComfyUI's {folder.name} folder; give one there.")
    return user_path(path)


def find_file(name: str) -> Path:
    """The file of a name like ``conditioning/x.safetensors [output]``.

    Raises:
        ValueError: no such file, or one outside of ComfyUI's output and input folders.
    """
    bases = {" [output]": folder_paths.get_output_directory(), " [input]": folder_paths.get_input_directory()}
    base = next((suffix for suffix in bases if name.endswith(suffix)), None)
    path = inside(bases[base or " [input]"], name.removesuffix(base or ""))
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        raise ValueError(f"There is no conditioning file {name!r}; save one with Save Conditioning.")
    return path


def list_files() -> list[str]:
    """Names of the saved conditionings, as :func:`find_file` takes them."""
    places = {"output": folder_paths.get_output_directory(), "input": folder_paths.get_input_directory()}
    return [
        f"{path.relative_to(base).as_posix()} [{kind}]"
        for kind, base in places.items()
        for path in sorted((Path(base) / FOLDER).rglob("*.safetensors"))
    ]


class LadderSaveConditioning(io.ComfyNode):
    """Writes a CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageSaveConditioning",
            display_name="Save Conditioning",
            category="TBAC-UniImage",
            description="Saves a conditioning as a small safetensors file in ComfyUI's output folder: "
            "a machine without room for the language model can draw from it.",
            search_aliases=["export conditioning", "cache prompt", "store conditioning", "uniimage"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="From Multi-Layer MLLM Encode, Rung Mix or stock nodes, with masks and ranges.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=f"{FOLDER}/ladder",
                    tooltip="Name inside the output folder; a number is added and nothing is overwritten. "
                    "Load Conditioning lists what lies in its folder 'conditioning'.",
                ),
                io.String.Input(
                    "note",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Kept in the file and handed out by Load Conditioning, for example the prompt.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="Its name, as Load Conditioning takes it.")
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """A name outside of the output folder is refused before the queue starts."""
        try:
            if filename_prefix is not None:
                inside(folder_paths.get_output_directory(), filename_prefix)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, conditioning: list, filename_prefix: str, note: str = "") -> io.NodeOutput:
        """Write it, whole or not at all."""
        from .conditioning_file import write_conditioning

        output = folder_paths.get_output_directory()
        inside(output, filename_prefix)
        folder, name, number, _, _ = folder_paths.get_save_image_path(filename_prefix, output)
        path = inside(output, f"{folder}/{name}_{number:05}_.safetensors")
        size = write_conditioning(path, conditioning, note)
        place = path.relative_to(Path(output).resolve())
        file = f"{place.as_posix()} [output]"
        text_display()(f"{file}: {size / 1e6:.1f} MB", True)
        return io.NodeOutput(file, ui=ui.PreviewText(file))


class LadderLoadConditioning(io.ComfyNode):
    """Reads a CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's face."""
        return Schema(
            node_id="TBACUniImageLoadConditioning",
            display_name="Load Conditioning",
            category="TBAC-UniImage",
            description="Loads what Save Conditioning wrote; the language model is not needed for it.",
            search_aliases=["import conditioning", "cached prompt", "uniimage"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=list_files(),
                    tooltip="A file in the folder 'conditioning' of ComfyUI's output or input folder. It "
                    "fits the model that it was made with.",
                )
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For any sampler or guider."),
                io.String.Output(display_name="note", tooltip="What was noted when it was saved."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """A file elsewhere, or none, is refused before the queue starts."""
        try:
            if file is not None:
                find_file(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """Another file under the same name is loaded anew."""
        try:
            status: os.stat_result = find_file(file).stat()
        except (OSError, ValueError):
            return file
        return f"{file} {status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Read and check it."""
        from .conditioning_file import read_conditioning

        conditioning, note = read_conditioning(find_file(file))
        if note:
            text_display()(note, True)
        return io.NodeOutput(conditioning, note, ui=ui.PreviewText(note))
