"""Audio files and tiny models for the tests."""

import io
import json

import numpy as np
import soundfile

RATE = 16_000


def tone(seconds=1.0, rate=RATE, hertz=440.0, loud=0.3):
    """Return samples of a tone that swells and fades."""
    time = np.arange(round(seconds * rate)) / rate
    return (loud * np.sin(2 * np.pi * hertz * time) * np.sin(np.pi * time / max(seconds, 1e-9))).astype(np.float32)


def encoded(samples, rate=RATE, form="WAV", subtype=None):
    """Return a file's bytes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def whisper_tokenizer(*, multilingual=True):
    """Return a tokenizer of bytes with Whisper's special tokens."""
    from tokenizers import pre_tokenizers
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    languages = [f"<|{code}|>" for code in LANGUAGES] if multilingual else []  # transformers counts on their order
    special = ["<|startoftranscript|>", *languages, "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.set_prefix_tokens()
    return tokenizer


def tiny_whisper(*, multilingual=True, seed=0):
    """Return a random WhisperForConditionalGeneration with a window of 2 s, and its processor."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    tokenizer = whisper_tokenizer(multilingual=multilingual)
    number = tokenizer.convert_tokens_to_ids
    end, start = tokenizer.eos_token_id, number("<|startoftranscript|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=16,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=100,
        max_target_positions=64,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=None,
        init_std=0.2,
    )
    torch.manual_seed(seed)
    module = WhisperForConditionalGeneration(config).eval()
    languages = {"lang_to_id": {f"<|{x}|>": number(f"<|{x}|>") for x in ("en", "de", "hi")}} if multilingual else {}
    module.generation_config = GenerationConfig(
        max_length=64,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        no_timestamps_token_id=number("<|notimestamps|>"),
        is_multilingual=multilingual,
        task_to_id={task: number(f"<|{task}|>") for task in ("transcribe", "translate")},
        return_timestamps=False,
        **languages,
    )
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    return module, WhisperProcessor(extractor, tokenizer)


def spoken_rows(count=4):
    """Return rows of tones as WAV bytes, with transcripts of different lengths."""
    texts = ["a cat", "Two dogs ran.", "no", "the sun is up, Anna", "it rains", "we go"]
    return [
        {
            "audio": {"bytes": encoded(tone(0.3 + 0.2 * (i % 6), hertz=200 + 60 * i)), "path": f"{i}.wav"},
            "text": texts[i % 6],
        }
        for i in range(count)
    ]


def write_rows(folder, rows, name="train.jsonl"):
    """Write rows whose audio is bytes as WAV files beside a JSONL file; return its path."""
    lines = []
    for i, row in enumerate(rows):
        file = folder / f"{i}.wav"
        file.write_bytes(row["audio"]["bytes"])
        lines.append(json.dumps({**row, "audio": file.name}) + "\n")
    path = folder / name
    path.write_text("".join(lines), encoding="utf-8")
    return path


def tiny_wav2vec2(head="Wav2Vec2ForCTC", *, mask=True, seed=0, **config):
    """Return a random Wav2Vec2 with convolutions by 20, and its processor with a vocabulary of capitals."""
    import torch
    import transformers

    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    settings |= {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (10, 2), "num_feat_extract_layers": 2}
    settings |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    settings |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "mask_time_prob": 0.0, "vocab_size": 32}
    torch.manual_seed(seed)
    module = getattr(transformers, head)(transformers.Wav2Vec2Config(**settings, **config)).eval()
    if head != "Wav2Vec2ForCTC":
        return module, extractor
    return module, transformers.Wav2Vec2Processor(extractor, _letters())


def _letters():
    import tempfile
    from pathlib import Path

    from transformers import Wav2Vec2CTCTokenizer

    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vocab.json")
        file.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        return Wav2Vec2CTCTokenizer(str(file))


def tiny_parakeet(seed=0):
    """Return a random Parakeet with CTC, and its processor with a vocabulary of small letters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        ParakeetCTCConfig,
        ParakeetFeatureExtractor,
        ParakeetForCTC,
        ParakeetProcessor,
        ParakeetTokenizer,
    )

    tokens = ["<unk>", "▁", *"etaonihsrdlumwcfgypbvk'xjqz", "<pad>"]
    letters = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[], unk_token="<unk>"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = ParakeetTokenizer(tokenizer_object=letters, unk_token="<unk>", pad_token="<pad>")
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    encoder |= {"subsampling_conv_channels": 8, "num_mel_bins": 16, "conv_kernel_size": 3, "subsampling_factor": 4}
    encoder |= {"dropout": 0.0, "layerdrop": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0}
    settings = {"vocab_size": len(tokens), "pad_token_id": len(tokens) - 1, "ctc_loss_reduction": "sum"}
    torch.manual_seed(seed)
    module = ParakeetForCTC(ParakeetCTCConfig(encoder_config=encoder, **settings)).eval()
    return module, ParakeetProcessor(ParakeetFeatureExtractor(feature_size=16), tokenizer)


def tiny_moonshine(seed=0):
    """Return a random Moonshine, and its processor with a vocabulary of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        MoonshineConfig,
        MoonshineForConditionalGeneration,
        PreTrainedTokenizerFast,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Processor,
    )

    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    letters = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, **special)
    settings = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": len(tokens), "max_position_embeddings": 64}
    sides = {f"{x}_num_{what}": 2 for x in ("encoder", "decoder") for what in ("hidden_layers", "attention_heads")}
    torch.manual_seed(seed)
    module = MoonshineForConditionalGeneration(MoonshineConfig(**settings, **sides, initializer_range=0.2)).eval()
    return module, Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer)
