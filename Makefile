# make demo     run two graphs headless in real ComfyUI; the pictures land in out/
# make comfyui  open ComfyUI with this pack for a browser
# make test     lint, parity, every fast test, one graph in real ComfyUI and in a real browser (minutes)
# make test-all make test, then every other test (about twenty minutes on two cores)
# make test-newest COMFYUI_PATH=/path/to/ComfyUI  this pack's tests on another ComfyUI, with the packages that it asks
#               for (another ComfyUI; for newer libraries see make newest)
# make score    the embedded model on held-out scenes, with chance and ceilings; fetches the drawings (needs npm)
# make nano     the embedded model again from nothing, most of a day on two cores (needs npm); goes on where it was
# make newest   today's newest transformers, diffusers and the rest, without ComfyUI: every command of README and of
#               docs/training.md's ten minutes (newer libraries; for another ComfyUI see make test-newest; 3 minutes)
# make versions parity and core's tests at the ends of the supported transformers and diffusers, then with the newest;
#               writes what was newest into README (10 minutes)
# COMFYUI_PATH=/path/to/ComfyUI uses a tree of yours instead of the one fetched into .cache/

PYTHON ?= python3
RUN := .venv/bin/python
# containers set it; each process would compile ComfyUI and this package anew: a second
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo comfyui test test-all test-newest lint newest versions nano score clean

setup:
	$(PYTHON) scripts/setup_env.py
	$(RUN) scripts/comfy_tree.py

demo: setup
	$(RUN) scripts/demo.py

comfyui: setup
	$(RUN) scripts/open_comfyui.py

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# the models in the tests are so small that threads only get in each other's way: tests run side by side instead.
# Those of a file stay together, which shares its servers and models, until a process has nothing left to do
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest $(SIDE_BY_SIDE)

FAST := not slow or (smoke and not newest_page)

test: lint
	$(PYTEST) -m "$(FAST)"

test-all: test
	$(PYTEST) -m "not ($(FAST))"

test-newest: setup
	OMP_NUM_THREADS=1 $(RUN) scripts/run_on_tree.py $(SIDE_BY_SIDE)

newest: setup
	$(RUN) scripts/newest.py

versions: setup
	$(RUN) scripts/parity_versions.py

nano: setup
	$(RUN) -m tbac_uniimage.training.nano.make

score: setup
	$(RUN) -m tbac_uniimage.training.nano.domain.art
	.venv/bin/tbac-uniimage score

clean:
	rm -rf .venv .cache/versions .cache/newest .cache/frontend .cache/comfyui .cache/mounted .cache/demo out build *.egg-info
