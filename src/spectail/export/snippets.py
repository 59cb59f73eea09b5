"""The text of the Python files that ``spectail export`` writes for static rates.

They stand alone: nothing of spectail is needed where they run.
"""

GROUPS = '''"""Learning rates and weight decays by layer, allocated by spectail around {base}."""

import re

{imports}

LEARNING_RATE = {{{learning_rates}
}}
WEIGHT_DECAY = {{{weight_decays}
}}
"""A pattern for the names of parameters, and what the base rate or decay is multiplied by."""


def parameter_groups(model, lr, weight_decay=0.0, decayed=None):
    """Return the groups of parameters for an optimizer, those of equal rate and decay together.

    lr and weight_decay are the base values, which parameters that no pattern matches have.
    decayed holds the names of the parameters with a weight decay; by default it is all of them.
    """
    patterns = [*LEARNING_RATE, *WEIGHT_DECAY]
    names = _bare_names(model, patterns)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names.values()):
            raise ValueError(f"no parameter of the model matches {{pattern}}")
    groups = {{}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if decayed is None or name in decayed else 0.0
            rate = lr * _factor(LEARNING_RATE, names[name])
            decay = decay * _factor(WEIGHT_DECAY, names[name])
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {{"params": parameters, "lr": rate, "weight_decay": decay}}
        for (rate, decay), parameters in groups.items()
    ]


def _bare_names(model, patterns):
    """Map the names of parameters to those without wrappers around the model."""
    names = [name for name, _ in model.named_parameters()]
    bare = [re.sub(r"_orig_mod\\.|_fsdp_wrapped_module\\.", "", name) for name in names]
    # DDP puts "module." before every name, and a model may have a part of that name itself.
    while bare and all(name.startswith("module.") for name in bare):
        if any(re.search(pattern, name) for pattern in patterns for name in bare):
            break
        bare = [name.removeprefix("module.") for name in bare]
    return dict(zip(names, bare))


def _factor(factors, name):
    """Return the factor of the pattern that matches, or 1."""
    return next((x for pattern, x in factors.items() if re.search(pattern, name)), 1.0)
'''

TORCH = '''

def make_optimizer(model, lr, weight_decay=0.0, kind=torch.optim.AdamW, **options):
    """Return an optimizer; a scheduler multiplies every group's own rate."""
    return kind(parameter_groups(model, lr, weight_decay), lr=lr, **options)
'''

TRANSFORMERS = '''

class LayerRatesTrainer(Trainer):
    """A Trainer with these groups; TrainingArguments has the base rate and decay."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            given = self.optimizer_cls_and_kwargs
            kind, options = given or self.get_optimizer_cls_and_kwargs(self.args, model)
            if {"params", "model", "optimizer_dict"} & set(options):
                raise ValueError(f"optim={self.args.optim} makes groups of its own: use another")
            decayed = set(self.get_decay_parameter_names(model))
            rate, decay = self.args.learning_rate, self.args.weight_decay
            groups = parameter_groups(model, rate, decay, decayed)
            self.optimizer = kind(groups, **options)
        return self.optimizer
'''

LIGHTNING = '''

class LayerRates:
    """The first base class of a LightningModule that holds its network as self.model.

    class Mine(LayerRates, LightningModule):
        lr, weight_decay = 3e-4, 0.1
    """

    network = "model"
    lr = 1e-3
    weight_decay = 0.0
    kind = torch.optim.AdamW

    def configure_optimizers(self):
        model = getattr(self, self.network)
        return self.kind(parameter_groups(model, self.lr, self.weight_decay), lr=self.lr)
'''
