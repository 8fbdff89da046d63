"""ComfyUI's entry point. Nothing of ours is imported before ComfyUI asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension object that lists our nodes (ComfyUI's V3 protocol)."""
    from .nodes import LadderExtension

    return LadderExtension()
