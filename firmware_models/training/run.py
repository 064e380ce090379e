"""The state of a training run: what a step changes, what is validated, how it is stored and restored."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge import files
from firmware_models.architectures import FirmwareModel, build
from firmware_models.data import Clips
from firmware_models.data.silence import Noise
from firmware_models.evaluation import Evaluation, Scorer, evaluate
from firmware_models.scoring import torch_scorer
from firmware_models.training.augmentation import Augmenter
from firmware_models.training.checkpoint import (
    MODEL_FILE,
    CheckpointInfo,
    load_tensors,
    save_checkpoint,
    save_tensors,
)
from firmware_models.training.recipe import Recipe
from firmware_models.training.sampling import Sampler
from firmware_models.training.start import Start

STATE_FILE, METRICS_FILE = "state.safetensors", "metrics.json"


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a run learns from: clips of the train and validation splits, train noise, synthetic clips if any."""

    train: Clips
    validation: Clips
    noises: tuple[Noise, ...]
    synthetic: Clips | None = None

    def describe(self) -> dict[str, Any]:
        """The counts that belong into the record of a run."""
        parts = {"train": self.train, "validation": self.validation, "synthetic": self.synthetic}
        return {
            name: {"clips": len(clips), "speakers": clips.speaker_count(), "per_label": clips.counts()}
            for name, clips in parts.items()
            if clips is not None
        }


class Run:
    """Everything that changes while training, and how it is stored."""

    def __init__(
        self,
        recipe: Recipe,
        material: Material,
        device: str,
        teacher: tuple[FirmwareModel, CheckpointInfo | None] | None = None,
        start: Start | None = None,
    ) -> None:
        self.recipe, self.material, self.start = recipe, material, start
        model = _untrained(recipe, material.train) if start is None else copy.deepcopy(start.model)
        self.device = torch.device(device)
        # Tensors of channels in the last place make the convolutions of a CPU about twice as fast.
        self.model: FirmwareModel = model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.teacher = teacher[0].to(self.device).eval() if teacher else None
        self.teacher_info = teacher[1] if teacher else None
        augmenter = Augmenter(recipe.augmentation, material.noises)
        self.sampler = Sampler(material.train, material.synthetic, recipe.sampling, augmenter)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model, recipe.weight_decay), lr=recipe.learning_rate)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.smooth = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        self.best = {name: t.clone() for name, t in self.smooth.items()}
        self.best_score = -1.0
        self.history: list[dict[str, float]] = []
        self.step = 0
        self.elapsed_s = 0.0
        self.recent_loss = 0.0
        self.before: dict[str, dict[str, float]] = {}

    def advance(self) -> float:
        """Do one step; dropout and batch follow from seed and step alone."""
        recipe, step = self.recipe, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        pcm, label_index = self.sampler.batch(recipe.batch, seed=recipe.seed, step=step)
        rng = np.random.default_rng((recipe.seed, step, 1))
        sound = torch.from_numpy(pcm).to(self.device)
        target = nn.functional.one_hot(torch.from_numpy(label_index), len(self.model.labels)).float().to(self.device)
        if recipe.mixup > 0:
            part = float(rng.beta(recipe.mixup, recipe.mixup))
            other = torch.from_numpy(rng.permutation(recipe.batch)).to(self.device)
            sound, target = torch.lerp(sound[other], sound, part), torch.lerp(target[other], target, part)
        self.model.train()
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            torch.manual_seed(int(rng.integers(1 << 63)))
            with torch.no_grad():
                features = self.model.features(sound)
                if features.ndim == 3:
                    _, frames, bands = features.shape
                    in_time, in_bands = self.sampler.augmenter.masks(recipe.batch, frames, bands, rng)
                    features = features * torch.from_numpy(in_time).to(sound) * torch.from_numpy(in_bands).to(sound)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
                logits = self.model.classify(features)
        loss = self.loss_of(logits.float(), target, sound)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.gradient_clip)
        self.optimizer.step()
        self.step += 1
        self._smooth_weights()
        value = float(loss.detach())
        self.recent_loss = value if self.step == 1 else 0.98 * self.recent_loss + 0.02 * value
        return value

    def validate(self) -> None:
        """Score the smoothed weights on the validation split and keep them if they are the best so far."""
        found = evaluate(self.scorer(self.smooth), self.material.validation)
        row = {"step": float(self.step), "loss": self.recent_loss, "top1": found.top1, "balanced": found.balanced}
        self.history.append(row)
        self._keep(found)

    def validate_start(self) -> None:
        """Score what the run starts from; it is what training has to beat."""
        if self.start is None:
            return
        if self.start.whole is not None:
            scorer = torch_scorer(copy.deepcopy(self.start.whole).to(self.device).eval())
            self.before["whole"] = _summary(evaluate(scorer, self.material.validation))
        found = evaluate(self.scorer(self.smooth), self.material.validation)
        self.before["start"] = _summary(found)
        self._keep(found)

    def _keep(self, found: Evaluation) -> None:
        score = (found.top1 + found.balanced) / 2
        if self.recipe.keep == "last" or score >= self.best_score:
            self.best_score = score
            self.best = {name: t.clone() for name, t in self.smooth.items()}
            self.best_evaluation = found

    def scorer(self, weights: dict[str, Tensor]) -> Scorer:
        """A scorer with other weights than the ones being trained."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(weights)
        return torch_scorer(model.eval())

    def note(self, loss: float) -> str:
        """What a person watching wants to know."""
        last = self.history[-1] if self.history else None
        seen = f", validation {last['top1']:.1%} / {last['balanced']:.1%}" if last else ""
        return f"loss {loss:.2f}{seen}"

    def write(self, out: Path) -> None:
        """Store result, metrics and state; the state last, so that a kill in between repeats work but loses none."""
        best: Evaluation = self.best_evaluation
        kept = {"validation_top1": best.top1, "validation_balanced": best.balanced, "validation_n": float(best.n)}
        kept |= {f"{name}_validation_top1": found["top1"] for name, found in self.before.items()}
        origin: dict[str, Any] = {
            "seed": self.recipe.seed,
            "steps": self.step,
            "minutes": round(self.elapsed_s / 60, 2),
        }
        if self.start is not None:
            origin["start"] = self.start.training
        if self.teacher_info is not None:
            origin["teacher_minutes"] = self.teacher_info.training.get("minutes")
            origin["teacher_validation_top1"] = self.teacher_info.metrics.get("validation_top1")
        save_checkpoint(out / MODEL_FILE, self.model, weights=self.best, metrics=kept, training=origin)
        metrics = {
            **origin,
            "finished": self.step == self.recipe.steps,
            "threads": torch.get_num_threads(),
            "parameters": self.model.parameter_count(),
            "validation": best.to_json(),
            "history": self.history,
        }
        if self.start is not None:
            metrics["before"] = self.before
        files.write(out / METRICS_FILE, (json.dumps(metrics, indent=1) + "\n").encode())
        tensors: dict[str, Tensor] = {}
        for prefix, group in (("model", self.model.state_dict()), ("smooth", self.smooth), ("best", self.best)):
            tensors |= {f"{prefix}.{name}": t for name, t in group.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in state.items()}
        tensors["confusion"] = torch.from_numpy(best.confusion)
        about = {
            "schema": 1,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best_score": self.best_score,
            "recent_loss": self.recent_loss,
            "history": self.history,
            "before": self.before,
        }
        save_tensors(out / STATE_FILE, tensors, about)

    def restore(self, path: Path) -> None:
        """Continue from what :meth:`write` stored."""
        tensors, about = load_tensors(path)
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            prefix, _, rest = name.partition(".")
            groups.setdefault(prefix, {})[rest] = tensor
        self.model.load_state_dict(groups["model"])
        self.smooth = {name: t.to(self.device) for name, t in groups["smooth"].items()}
        self.best = {name: t.to(self.device) for name, t in groups["best"].items()}
        optimizer = self.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, field = name.partition(".")
            state.setdefault(int(index), {})[field] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": optimizer["param_groups"]})
        self.best_evaluation = Evaluation(self.model.labels, tensors["confusion"].numpy())
        self.step, self.history = int(about["step"]), list(about["history"])
        self.elapsed_s, self.best_score = float(about["elapsed_s"]), float(about["best_score"])
        self.recent_loss = float(about["recent_loss"])
        self.before = dict(about.get("before", {}))

    def loss_of(self, logits: Tensor, target: Tensor, sound: Tensor) -> Tensor:
        """What ``logits`` cost, given the labels' shares ``target`` and what a teacher answers to ``sound``."""
        loss: Tensor = self.loss(logits, target)
        settings = self.recipe.distillation
        if self.teacher is None or settings is None:
            return loss
        with torch.no_grad():
            features = self.teacher.features(sound)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
                answers = self.teacher.classify(features)
        temperature = settings.temperature
        distance = nn.functional.kl_div(
            torch.log_softmax(logits / temperature, 1),
            torch.log_softmax(answers.float() / temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - settings.weight) * loss + settings.weight * temperature**2 * distance

    def _smooth_weights(self) -> None:
        # Early weights are forgotten faster than the decay says, so that a short run is not held back by its start.
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.smooth[name].lerp_(tensor, 1 - decay)
                else:
                    self.smooth[name].copy_(tensor)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: linear up, cosine down to 0 at the last."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _untrained(recipe: Recipe, clips: Clips) -> FirmwareModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return build(
            recipe.architecture,
            labels=clips.labels,
            window_samples=clips.pcm.shape[1],
            rate_hz=clips.rate_hz,
            **recipe.settings,
        )


def _summary(found: Evaluation) -> dict[str, float]:
    return {"top1": found.top1, "balanced": found.balanced, "n": found.n}


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay, biases and batch norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
