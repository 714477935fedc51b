"""What lies on disk: trees of arrays, models, a run's steps and the seal of its report.

RUN/model.json, tokenizer/               the model's dimensions, its tokenizer
RUN/checkpoints/STEP/params/             parameters, see `tree_store`
RUN/checkpoints/STEP/state/              optimizer state, step, rng
RUN/checkpoints/STEP/meta/meta.json      data iterator, metrics, manifests

MODEL/model.json, tokenizer/             a converted model has the same at its root
MODEL/params/, manifest.json

Where `adapters.json` stands at the root, params/ holds adapters (see `adapters.lora`) and not a
model; the file tells their spec, and which base they belong to.
"""
