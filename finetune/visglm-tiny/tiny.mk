# visglm-tiny from its sources: make tiny-data tiny-tokenizer tiny-vision tiny-text tiny-train, hours on one core.
# `make eval-tiny` needs tiny-data only. Everything lands in build/tiny.

.PHONY: tiny-data tiny-tokenizer tiny-vision tiny-text tiny-train tiny-record eval-tiny

TINY := build/tiny
TINY_RUN := OMP_NUM_THREADS=1 $(VENV_PYTHON) finetune/visglm-tiny
TINY_STYLES := emojione@1.2.3 fluent-emoji@1.2.7 fluent-emoji-flat@1.2.6 noto@1.2.9 noto-v1@1.2.5 twemoji@1.2.5 \
	openmoji@1.2.29 fxemoji@1.2.2

$(TINY)/data/sources.json: finetune/visglm-tiny/render.py finetune/visglm-tiny/names.tsv | $(DEV)
	@$(VENV_PYTHON) -m pip install --quiet -c constraints.txt resvg_py
	@npm install --ignore-scripts --no-audit --no-fund --prefix $(TINY) $(addprefix @iconify-json/,$(TINY_STYLES))
	@$(TINY_RUN)/render.py $(TINY)/node_modules $(TINY)/data

tiny-data: $(TINY)/data/sources.json  ## draw the pictures of visglm-tiny (needs npm and a network)

tiny-tokenizer: $(TINY)/data/sources.json  ## train the tokenizer of visglm-tiny
	@$(TINY_RUN)/train_tokenizer.py $(TINY)/data/tokenizer

tiny-vision:  ## first stage of visglm-tiny: the ViT learns to name
	@$(TINY_RUN)/pretrain_vision.py $(TINY)/data $(TINY)/run

tiny-text:  ## second stage: the text model learns the answers
	@$(TINY_RUN)/pretrain_text.py $(TINY)/data $(TINY)/run

tiny-train:  ## third stage: the bridge between them; leaves a model in build/tiny/run/model
	@$(TINY_RUN)/train.py $(TINY)/data $(TINY)/run

tiny-record: $(DEV)  ## after new weights are in visglm/assets: bring README, notebook and self-test up to date
	@$(TINY_RUN)/record.py

eval-tiny: $(TINY)/data/sources.json  ## how often visglm-tiny is right; brings its MODEL_CARD.md up to date
	@$(TINY_RUN)/evaluate.py $(TINY)/data $(TINY)/evaluation
	@cp $(TINY)/evaluation/evaluation.json $(TINY)/evaluation/answers.png finetune/visglm-tiny/
