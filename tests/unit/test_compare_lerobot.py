"""LeRobot's own SARM, Robometer and TOPReward classes, at random weights and toy size, as methods.

Their weights and tokenizers live on the hub; here each is built small, saved as LeRobot or transformers save
it, and loaded through the adapter as a user's would be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lerobot.rewards.factory", reason="the `data` extra is not installed")
pytest.importorskip("transformers", reason="LeRobot's reward models need transformers")

import torch
from transformers import CLIPConfig, CLIPModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from robo_reward.compare.method import Budget, TrainingData
from robo_reward.compare.views import blinded
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.testing import MemoryReader, check_method, toy_episode
from robo_reward.train.config import TrainConfig
from robo_reward_data.adapters.sarm import LeRobotSARM
from robo_reward_data.adapters.vision_language import LeRobotRobometer, LeRobotTOPReward

NOTHING = TrainingData((), (), TrainConfig(data="", out=""), held_out=True, fingerprint="")
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
WORDS += ["<|image_pad|>", "<|video_pad|>", "<|prog_token|>"]


def episodes(*lengths: int) -> list[MemoryReader]:
    return [MemoryReader(toy_episode(60 + i, length=n)) for i, n in enumerate(lengths)]


# --- SARM ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of embedding length 16, with a tokenizer of single letters."""
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(tokens)}, [])
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokens), "eos_token_id": len(tokens) - 1},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sarm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SARM reward model of three stages, saved by LeRobot."""
    from lerobot.rewards.sarm.configuration_sarm import SARMConfig
    from lerobot.rewards.sarm.modeling_sarm import SARMRewardModel

    config = SARMConfig(
        annotation_mode="dual",
        n_obs_steps=4,
        max_rewind_steps=2,
        frame_gap=2,
        image_dim=16,
        text_dim=16,
        hidden_dim=16,
        num_heads=2,
        num_layers=1,
        max_state_dim=4,
        num_sparse_stages=3,
        sparse_subtask_names=["a", "b", "c"],
        sparse_temporal_proportions=[0.25, 0.25, 0.5],
        num_dense_stages=2,
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("sarm")
    torch.manual_seed(1)
    model = SARMRewardModel(config)
    for parameter in model.parameters():  # far from the start, where every frame looks alike
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def make_sarm(sarm: Path, clip: Path, **options: Any) -> LeRobotSARM:
    return LeRobotSARM(str(sarm), clip=str(clip), fps=10.0, **options)


@pytest.mark.parametrize("lookahead", [True, False])
def test_sarm_conforms(sarm: Path, clip: Path, tmp_path: Path, lookahead: bool) -> None:
    check_method(
        lambda: make_sarm(sarm, clip, lookahead=lookahead), NOTHING, episodes(9, 1), tmp_path / "work"
    )


def test_sarm_says_what_lerobot_says(sarm: Path, clip: Path, tmp_path: Path) -> None:
    """The window of frame 6 is frames 2, 4, 6, 8, 10: by hand through LeRobot's own processor and model."""
    from lerobot.rewards.sarm.modeling_sarm import SARMRewardModel
    from lerobot.rewards.sarm.processor_sarm import SARMEncodingProcessorStep

    (reader,) = episodes(12)
    method = make_sarm(sarm, clip)
    method.fit(NOTHING, Budget(steps=1), 0, tmp_path)
    found = method.predict(blinded(reader), ("front", "wrist"))
    model = SARMRewardModel.from_pretrained(sarm)
    images = reader.read_frames("front", np.array([2, 4, 6, 8, 10])).transpose(0, 3, 1, 2)[None]
    step = object.__new__(SARMEncodingProcessorStep)  # its __init__ fetches CLIP from the hub
    step.config, step.device = model.config, torch.device("cpu")
    step.clip_model, step.clip_processor = CLIPModel.from_pretrained(clip).eval(), _processor(clip)
    rewards, stages = model.calculate_rewards(
        step._encode_text_clip("fill the bar", 1),
        step._encode_images_batch(images),
        return_all_frames=True,
        return_stages=True,
    )
    assert found.progress[6] == pytest.approx(rewards[0, 2], abs=1e-5)
    assert found.stage is not None
    assert found.stage[6] == stages[0, 2].argmax()


def _processor(clip: Path) -> Any:
    from transformers import CLIPProcessor

    return CLIPProcessor.from_pretrained(clip)


def test_what_cannot_be_loaded_is_refused(sarm: Path, clip: Path, tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "none", "no LeRobot reward model at"),
        (clip, "no LeRobot reward model"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            make_sarm(path, clip).fit(NOTHING, Budget(), 0, tmp_path)
        with pytest.raises(CheckpointError, match=problem):
            make_sarm(path, clip).check(NOTHING)
    for refuse in (lambda m: m.check(NOTHING), lambda m: m.fit(NOTHING, Budget(), 0, tmp_path)):
        with pytest.raises(CheckpointError, match="of type 'sarm', not 'robometer'"):
            refuse(LeRobotRobometer(str(sarm)))
        with pytest.raises(ConfigError, match="no CLIP model at clip="):
            refuse(make_sarm(sarm, tmp_path / "none"))
        with pytest.raises(CheckpointError, match="no vision-language model at"):
            refuse(LeRobotTOPReward(str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="camera='rear': the episode has front, wrist"):
        make_sarm(sarm, clip, camera="rear").check(replace(NOTHING, train=tuple(episodes(3))))
    method = make_sarm(sarm, clip, camera="rear")
    method.fit(NOTHING, Budget(), 0, tmp_path)
    with pytest.raises(ConfigError, match="camera='rear'"):
        method.predict(blinded(episodes(3)[0]), ("front",))


# --- vision-language models ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL of two layers, with a byte tokenizer and its processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": WORDS})
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in WORDS}
    torch.manual_seed(2)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    folder = tmp_path_factory.mktemp("qwen")
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    pixels = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32 * 16}
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
        "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
        "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**pixels, size=size),
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def test_topreward_conforms(qwen: Path, tmp_path: Path) -> None:
    check_method(lambda: LeRobotTOPReward(str(qwen), frames=2, interval=3), NOTHING, episodes(7), tmp_path)


def test_topreward_is_the_probability_of_true(qwen: Path, tmp_path: Path) -> None:
    """LeRobot's own reward of the frames so far, as a probability, held between estimates."""
    from lerobot.lerobot_types import TransitionKey
    from lerobot.rewards.topreward.configuration_topreward import TOPRewardConfig
    from lerobot.rewards.topreward.modeling_topreward import TOPRewardModel
    from lerobot.rewards.topreward.processor_topreward import TOPRewardEncoderProcessorStep

    (reader,) = episodes(8)
    method = LeRobotTOPReward(str(qwen), camera="wrist", frames=3, interval=4)
    method.fit(NOTHING, Budget(), 0, tmp_path)
    found = method.predict(blinded(reader), ("front", "wrist")).progress
    assert found.tolist() == [found[0]] * 4 + [found[4]] * 4
    config = TOPRewardConfig(vlm_name=str(qwen), device="cpu")
    encoder = TOPRewardEncoderProcessorStep(vlm_name=str(qwen), image_key=config.image_key)
    video = torch.from_numpy(reader.read_frames("wrist", np.array([0, 2, 4]))).permute(0, 3, 1, 2)[None]
    transition = {
        TransitionKey.OBSERVATION: {config.image_key: video},
        TransitionKey.COMPLEMENTARY_DATA: {"task": "fill the bar"},
    }
    reward = TOPRewardModel(config).compute_reward(encoder(transition)[TransitionKey.OBSERVATION])
    assert found[4] == pytest.approx(float(reward.exp()), rel=1e-4)
    gone = method.predict(blinded(reader), ("front",))
    assert np.isnan(gone.progress).all()
    assert "camera 'wrist' alone" in gone.reason
    stretched = LeRobotTOPReward(str(qwen), frames=3, interval=4, per_episode=True)
    assert not stretched.causal
    stretched.fit(NOTHING, Budget(), 0, tmp_path)
    assert set(stretched.predict(blinded(reader), ("front",)).progress.tolist()) == {0.0, 1.0}


class Encoder:
    """What LeRobot's Robometer step does, without qwen-vl-utils, which only loads images from elsewhere."""

    def __init__(self, qwen: Path, image_key: str) -> None:
        from transformers import AutoProcessor

        self._processor = AutoProcessor.from_pretrained(qwen)
        self._image_key = image_key

    def __call__(self, transition: dict[Any, Any]) -> dict[Any, Any]:
        from lerobot.lerobot_types import TransitionKey
        from lerobot.rewards.robometer.modeling_robometer import ROBOMETER_FEATURE_PREFIX
        from PIL import Image

        video = transition[TransitionKey.OBSERVATION][self._image_key][0].permute(0, 2, 3, 1).numpy()
        task = transition[TransitionKey.COMPLEMENTARY_DATA]["task"]
        seen = "<|vision_start|><|image_pad|><|vision_end|><|prog_token|>"
        images: Sequence[Any] = [Image.fromarray(frame) for frame in video]
        encoded = dict(self._processor(text=[task + seen * len(images)], images=images, return_tensors="pt"))
        encoded["prog_token_id"] = self._processor.tokenizer.convert_tokens_to_ids("<|prog_token|>")
        return {TransitionKey.OBSERVATION: {f"{ROBOMETER_FEATURE_PREFIX}{k}": v for k, v in encoded.items()}}


def test_robometer_conforms(qwen: Path, tmp_path: Path) -> None:
    from lerobot.rewards.robometer.configuration_robometer import RobometerConfig
    from lerobot.rewards.robometer.modeling_robometer import RobometerRewardModel

    config = RobometerConfig(
        pretrained_path=str(qwen),
        base_model_id=str(qwen),
        torch_dtype="float32",
        vlm_config=json.loads((qwen / "config.json").read_text()),
        device="cpu",
    )
    torch.manual_seed(3)
    RobometerRewardModel(config).save_pretrained(tmp_path / "model")
    encoder = Encoder(qwen, config.image_key)

    def make() -> LeRobotRobometer:
        return LeRobotRobometer(str(tmp_path / "model"), frames=3, interval=3, encoder=encoder)

    check_method(make, NOTHING, episodes(7), tmp_path / "work")
    with pytest.raises(ConfigError, match="Robometer needs qwen-vl-utils"):
        LeRobotRobometer(str(tmp_path / "model")).check(NOTHING)
