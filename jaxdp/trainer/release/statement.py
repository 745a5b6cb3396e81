"""The privacy statement of a release as typed fields: the contents of `privacy.json`, format 3.

The fields are an allow-list (privacy rule 20): nothing about the machine, and nothing taken from
private records but the noised parameters. `privacy.schema.json` is their JSON schema: a test says
how to write it again after a change.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...models.config import ModelConfig
from ...types import Accountant, Adjacency, Allocation, ClippingKind, Sampling, Unit
from . import typed_json
from .typed_json import UpperBound

FORMAT: Literal[3] = 3

Epsilons = dict[Accountant, UpperBound]


@dataclass(frozen=True)
class Library:
    """A library of Python.

    Attributes:
      name: of the distribution.
      version: of it.
    """

    name: str
    version: str


@dataclass(frozen=True)
class PrivacyUnit:
    """What the guarantee protects.

    Attributes:
      kind: record: one row of the private data; user: all rows of one person.
    """

    kind: Literal["record", "user"]


@dataclass(frozen=True)
class EpsilonAtDelta:
    """ε of all mechanisms together at another δ.

    Attributes:
      delta: δ.
      epsilon: ε at it, by accountant; null: infinite.
    """

    delta: float
    epsilon: Epsilons


@dataclass(frozen=True)
class GaussianDP:
    """The one Gaussian mechanism that promises the same.

    Attributes:
      mu: sensitivity over standard deviation of its noise; null: infinite.
      at_every_delta: whether it promises the same at every δ, but for the noise's extra ε and δ; or
        only at the statement's.
    """

    mu: UpperBound
    at_every_delta: bool


@dataclass(frozen=True)
class NoiseStretch:
    """A part of a noise schedule.

    Attributes:
      noise_multiplier: during these steps.
      steps: how many.
    """

    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class SamplingFacts:
    """How the records of a step were chosen.

    Attributes:
      kind: poisson: every record on its own; shuffled: epochs, without amplification; fixed_size:
        so many records, without replacement; full_batch: all records.
      probability: expected batch size over number of examples.
      expected_batch_size: records in a step on average.
      num_examples: N, the number of private records.
      generator: of the random bits. philox4x64-10 is Philox4x64 with 10 rounds.
      law_distance: how far the law of a step's sample may be from the accounted one, in total
        variation; it is part of the noise's extra_delta.
    """

    kind: Sampling
    probability: float
    expected_batch_size: float
    num_examples: int
    generator: Literal["philox4x64-10"]
    law_distance: float


@dataclass(frozen=True)
class ClippingFacts:
    """How the contribution of one record was bounded.

    Attributes:
      kind: which clipping.
      call: the call that makes it, with its clipping norms.
      clipping_norms: where the clipping norms come from, in words.
      unit: whose gradient was clipped: an example's, or the mean of a batch unit's.
      batch_units: into how many batch units the records of a step were sorted; null: examples were
        clipped.
      clipped_together: whether all layers have one factor, so that noise and sensitivity of every
        layer are in proportion to its clipping norm.
      noise_allocation: how layers share the noise.
      sensitivity_at_first_step: how far one record moves the clipped sum, in Euclidean norm; if
        clipped together, that of the layer with the largest clipping norm.
    """

    kind: ClippingKind
    call: str
    clipping_norms: str
    unit: Unit
    batch_units: int | None
    clipped_together: bool
    noise_allocation: Allocation
    sensitivity_at_first_step: float


@dataclass(frozen=True)
class RoundingFacts:
    """How much more noise there is because the float32 sum of clipped gradients is rounded.

    Attributes:
      noise_raised_by: the fraction of the noise's standard deviation.
      kind: whether that fraction is a proved bound on how far rounding raises the sensitivity, or
        an estimate.
      bound: the proved bound, also where it is too large to be used; null: none is proved.
    """

    noise_raised_by: float
    kind: Literal["bound", "estimate"]
    bound: float | None


@dataclass(frozen=True)
class MechanismFacts:
    """One segment of the run: steps with the same settings and secrets.

    Attributes:
      kind: dp_sgd: Gaussian noise on the sum of clipped gradients.
      steps: how many were spent.
      noise_multiplier: the noise's standard deviation over the sensitivity under the statement's
        adjacency; where it changes with the step, a list.
      noise_draws_per_step: how many numbers get noise in a step, as the noise's extra ε counts.
      sampling: how records were chosen.
      clipping: how gradients were clipped.
      rounding: of their sum.
    """

    kind: Literal["dp_sgd"]
    steps: int
    noise_multiplier: float | tuple[NoiseStretch, ...]
    noise_draws_per_step: float
    sampling: SamplingFacts
    clipping: ClippingFacts
    rounding: RoundingFacts


@dataclass(frozen=True)
class NoiseFacts:
    """Where the noise comes from, and what it costs that it is not an exact Gaussian.

    Attributes:
      distribution: of the noise. rounded normal is a Gaussian that is rounded to the points of a
        grid.
      points_per_std: how many points of the grid one standard deviation has; if grids differ, in
        the coarsest.
      generator: of the random bits. threefry4x32-20 is Threefry-4x32 with 20 rounds.
      key_bits: length of its secret key; 32 if a seed was given.
      privacy: what kind of guarantee it is. computational: it holds against all who can't tell the
        generator from random bits.
      extra_epsilon: what was added to ε for it, and is part of the ε that is stated.
      extra_delta: what was added to δ for it at that ε, and is part of the δ that is stated.
    """

    distribution: Literal["rounded normal"]
    points_per_std: Literal[4_194_304, 16_777_216]
    generator: Literal["threefry4x32-20"]
    key_bits: Literal[32, 128]
    privacy: Literal["computational"]
    extra_epsilon: float
    extra_delta: float


@dataclass(frozen=True)
class DataUse:
    """Which records were used, and for what: they are named by the rule that splits them.

    Attributes:
      name: of the data set.
      private: the protected records that the model was trained on.
      public: records without protection; null: none.
      test: the records that are scored; null: none.
      window: of a text, the characters that a record predicts; it is one longer. null: no text.
      source: what read them. given: their owner gave them to jaxdp; text, table, folder: files of
        the owner; tfds, digits: a set that has this name everywhere.
      fields: the declared columns or fields of a record, with what they are; empty: none are
        declared.
      bad_rows: refused: every row could be used, or there was no run; left_out: rows that can't be
        used count in N and are in no batch.
      cached: whether decoded copies of the records were kept in a cache on the machine of the run.
      canaries: how many of the records that count in N are made up, from public facts alone, to
        audit the run; each took part by a secret fair coin.
    """

    name: str
    private: str
    public: str | None
    test: str | None
    window: int | None
    source: Literal["given", "digits", "tfds", "text", "table", "folder"]
    fields: tuple[str, ...]
    bad_rows: Literal["refused", "left_out"]
    cached: bool
    canaries: int


@dataclass(frozen=True)
class TaskFacts:
    """What was learnt.

    Attributes:
      name: what it is, in a word or two.
      model: the options of a model of jaxdp; null: the model is its owner's.
      measures: whether the first step released a mean of the records' numbers, and no gradient.
    """

    name: str
    model: ModelConfig | None
    measures: bool


@dataclass(frozen=True)
class Preprocessing:
    """What a model of jaxdp sees of an input: (input - center) / scale.

    Attributes:
      center: one number, or one for each channel; null: inputs are tokens.
      scale: likewise.
      description: where the two come from.
      decoding: a checksum of the constants and options by which inputs and labels were decoded: of
        a schema, tokens or sizes of images. They are public.
      made_by: the call of jaxdp that makes features of images; null: the inputs are no features.
    """

    center: float | tuple[float, ...] | None
    scale: float | tuple[float, ...] | None
    description: str
    decoding: str
    made_by: str | None


@dataclass(frozen=True)
class BatchNormFacts:
    """Where BatchNorm's released statistics come from.

    Attributes:
      public: the records without protection on which they were taken, at the released parameters.
    """

    public: str


@dataclass(frozen=True)
class Statement:
    """The privacy statement of a release, written by jaxdp.

    Attributes:
      format: of this file.
      library: what trained the model and wrote this.
      private: false: there is no guarantee, because the secrets are known.
      reproducible: whether a seed was given, so that noise and sampling can be repeated.
      privacy_unit: what the guarantee protects.
      adjacency: which data sets are neighbours: add_remove: one privacy unit is added or removed;
        replace_one: it is replaced by any other; zero_out: by an empty one.
      num_examples: N, the number of private records of the last segment; it is public.
      delta: δ of the guarantee.
      accountant: whose ε is the claim, the tightest.
      accounting: the library that composes the steps.
      epsilon: ε of all mechanisms together at δ, by accountant; null: infinite.
      epsilon_at_smaller_deltas: the same at other δ.
      gaussian_dp: the Gaussian-DP equivalent.
      target_epsilon: the ε that the noise was chosen for; null: the noise was given.
      steps: how many were spent, by all mechanisms.
      steps_planned: how many the last plan has.
      mechanisms: one for every segment of the run, in order; together they have the ε above.
      secrets: the keys of noise and sampling, with which the noise can be taken off. kept: the
        run's private files hold some; destroyed: they hold none any more, but copies may.
      noise: where the noise comes from.
      data: the records that the last segment used.
      earlier_data: other records that earlier segments used.
      test_is_public: whether the test records were declared public, or are the test split of a
        published set; the owner's own files are not unless it was declared.
      task: what was learnt.
      preprocessing: what the model sees of an input; null: that is a part of the task.
      batch_norm: null: the model has no BatchNorm.
      assumptions: it holds if all of these do.
      not_covered: what it does not promise.
    """

    format: Literal[3]
    library: Library
    private: bool
    reproducible: bool
    privacy_unit: PrivacyUnit
    adjacency: Adjacency
    num_examples: int
    delta: float
    accountant: Accountant
    accounting: Library
    epsilon: Epsilons
    epsilon_at_smaller_deltas: tuple[EpsilonAtDelta, ...]
    gaussian_dp: GaussianDP
    target_epsilon: float | None
    steps: int
    steps_planned: int
    mechanisms: tuple[MechanismFacts, ...]
    secrets: Literal["kept", "destroyed"]
    noise: NoiseFacts
    data: DataUse
    earlier_data: tuple[DataUse, ...]
    test_is_public: bool
    task: TaskFacts
    preprocessing: Preprocessing | None
    batch_norm: BatchNormFacts | None
    assumptions: tuple[str, ...]
    not_covered: tuple[str, ...]

    def __post_init__(self) -> None:
        for epsilon in (self.epsilon, *(at.epsilon for at in self.epsilon_at_smaller_deltas)):
            if self.accountant not in epsilon:
                raise ValueError(
                    f"accountant is {self.accountant!r}, and an epsilon has no value by it: "
                    f"expected one of {', '.join(epsilon)}"
                )

    @property
    def claimed_epsilon(self) -> float:
        """ε by the tightest accountant."""
        return self.epsilon[self.accountant]


def to_text(statement: Statement) -> str:
    """The contents of `privacy.json`."""
    fact = typed_json.to_json(statement)
    return json.dumps(fact, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def schema_text() -> str:
    """The contents of `privacy.schema.json`."""
    return json.dumps(typed_json.schema(Statement), indent=2, ensure_ascii=False) + "\n"


def read_statement(path: str | Path) -> Statement:
    """Reads a `privacy.json`.

    Args:
      path: the file.

    Raises:
      OSError: if it can't be read.
      ValueError: if it is damaged, of another format, or has a field or value that this version
        does not know: half a statement would be misread.
    """
    text = Path(path).read_bytes()
    try:
        fact = json.loads(text, object_pairs_hook=_once)
        found = fact.get("format") if isinstance(fact, dict) else None
        if found is not None and found != FORMAT:
            raise ValueError(f"format is {found!r}: expected {FORMAT}, the one of this version")
        return typed_json.from_json(Statement, fact)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} can't be read ({error}): take an undamaged copy, or the version of jaxdp that "
            "wrote it"
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Others may read the other value of a name that is there twice."""
    fact = dict(pairs)
    if len(fact) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return fact
