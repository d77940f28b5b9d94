# make demo: the main job on embedded data. make test: everything is checked.
# Another Python: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
REFERENCES := finetune head masked_head lora inflora nearest_mean ranpac joint

# A run on the demo's stream: its name, its config; what it prints goes to a log.
quietly = $(BIN)/python main.py --workdir $(DEMO)/$(1) \
  --my_config configs/digits_$(2) \
  > $(DEMO)-$(1).log 2>&1 || { cat $(DEMO)-$(1).log; exit 1; }

.PHONY: demo test lint types install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt .ci/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt \
	  -r .ci/requirements.txt
	touch $@

demo: install
	$(BIN)/python main.py --my_config configs/digits_l2p.py \
	  --workdir $(DEMO)/l2p
	@echo "the same stream: lora_sub"; $(call quietly,lora_sub,lora_sub.py)
	@for method in $(REFERENCES); do \
	  echo "the same stream: $$method"; \
	  $(call quietly,$$method,reference.py:method=$$method); \
	done
	@$(BIN)/python -m libml.tables $(DEMO)/l2p $(DEMO)/lora_sub \
	  $(addprefix $(DEMO)/,$(REFERENCES))

test: install
	$(BIN)/python -m pytest -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyrefly check

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache
