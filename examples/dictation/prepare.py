"""Have espeak-ng dictate a doctor's notes in several voices; write train, test and plain speech as audio with JSONL.

Sentences are made of patterns, names of medicines, doses and times. Test has other sentences than training, some of
patterns that training lacks, all by voices that it lacks; `plain.jsonl` has everyday sentences, by one more voice, to
see whether plain speech is forgotten. `drugs.txt` lists the names. espeak-ng is a program: apt-get install espeak-ng.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

# fmt: off
DRUGS = (
    "acetaminophen", "albuterol", "allopurinol", "amiodarone", "amlodipine", "amoxicillin", "apixaban",
    "atorvastatin", "azithromycin", "baclofen", "bisoprolol", "budesonide", "carvedilol", "cefalexin", "citalopram",
    "clopidogrel", "dabigatran", "diclofenac", "digoxin", "duloxetine", "enalapril", "enoxaparin", "escitalopram",
    "furosemide", "gabapentin", "glipizide", "hydrochlorothiazide", "levothyroxine", "lisinopril", "losartan",
    "metformin", "metoprolol", "mirtazapine", "naproxen", "omeprazole", "pantoprazole", "prednisolone", "pregabalin",
    "ramipril", "rivaroxaban", "rosuvastatin", "sertraline", "sitagliptin", "spironolactone", "tamsulosin",
    "tramadol", "valsartan", "venlafaxine", "verapamil", "warfarin",
)
# fmt: on
DOSES = ("five", "ten", "twenty", "twenty five", "forty", "fifty", "eighty", "one hundred")
TIMES = ("once daily", "twice daily", "every morning", "at night", "every eight hours", "before breakfast", "with food")
REASONS = ("pain", "hypertension", "atrial fibrillation", "heart failure", "reflux", "type two diabetes", "depression")
DAYS = ("three days", "one week", "two weeks", "six weeks", "three months")

PATTERNS = (
    "Start {drug} {dose} milligrams {time} for {reason}.",
    "Continue {drug} {dose} milligrams {time}.",
    "Stop {drug} and start {other} {dose} milligrams {time}.",
    "The patient takes {drug} and {other} {time}.",
    "Increase {drug} to {dose} milligrams {time}.",
    "Reduce {drug} by {dose} milligrams after {days}.",
    "She was discharged on {drug}, {other} and {third}.",
    "Known allergy to {drug}, tolerates {other}.",
    "Prescribe {drug} {dose} milligrams for {days}.",
    "History of {reason}, treated with {drug}.",
    "He reports nausea since starting {drug}.",
    "Review {drug} and renal function in {days}.",
    "{drug} was held because of bradycardia.",
    "Replace {drug} with {other} if symptoms persist.",
)
UNSEEN = (
    "Please dispense {dose} tablets of {drug}.",
    "No interaction between {drug} and {other} is expected.",
    "Her {reason} is well controlled with {drug}.",
    "Consider {drug} as an alternative to {other}.",
)
"""Patterns of test alone."""

VOICES = {
    "train": ("en-gb-scotland+m3", "en-gb-x-gbclan+f2", "en-029+m1", "en-us-nyc+f4", "en-gb-x-rp+m7", "en-gb+f5"),
    "test": ("en-gb-x-gbcwmd+m4", "en-us+f3", "en-gb-scotland+f1"),
    "plain": ("en-us+m2",),
}
"""Voice and variant by split; no variant is in two."""
SPEEDS = (150, 165, 180)
"""Words a minute."""
PLAIN = (
    *("The children played in the garden until it was dark.", "My brother drives to work at seven every morning."),
    *("We bought fresh bread and cheese at the market.", "The train to London leaves from platform four."),
    *("She has lived in the same house for thirty years.", "It will rain in the north and be dry in the south."),
    *("Please close the window before you go to bed.", "The museum is free on the first Sunday of the month."),
    *("He forgot his umbrella and came home wet.", "They are planning a holiday by the sea in August."),
    *("The teacher asked everyone to read the first chapter.", "A small dog was sleeping under the table."),
    *("Could you tell me the way to the post office?", "The film was longer than I had expected."),
    *("Our neighbours are painting their fence green.", "The river was frozen for most of the winter."),
    *("I would like two coffees and a glass of water.", "The old bridge was closed to heavy traffic."),
    *("She called her mother on the way to the station.", "The players shook hands after the match."),
    *("There is a letter for you on the kitchen table.", "The shop around the corner sells good apples."),
    *("He has been learning the piano since he was six.", "The meeting was moved to Thursday afternoon."),
    *("Most of the guests had already left by midnight.", "The bus was late because of the snow."),
    *("You can see the mountains from the top of the tower.", "The baby laughed when the cat jumped down."),
    *("We had to wait an hour for a table.", "The farmer keeps sheep and a few cows."),
)
"""Sentences of everyday, in which no medicine is named."""


def sentences(patterns: Sequence[str], count: int, rng: random.Random) -> Iterator[str]:
    """Yield distinct sentences, each medicine about as often as any other."""
    made, names = set[str](), list[str]()
    while len(made) < count:
        if len(names) < 3:
            names += rng.sample(DRUGS, len(DRUGS))
        drug, other, third = (names.pop() for _ in range(3))
        sentence = rng.choice(patterns).format(
            drug=drug,
            other=other,
            third=third,
            dose=rng.choice(DOSES),
            time=rng.choice(TIMES),
            reason=rng.choice(REASONS),
            days=rng.choice(DAYS),
        )
        sentence = sentence[0].upper() + sentence[1:]
        if sentence not in made:
            made.add(sentence)
            yield sentence


def speak(text: str, voice: str, speed: int, file: Path) -> None:
    """Write a text as a WAV file."""
    subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(file), text], check=True)


def write(name: str, texts: Sequence[str], folder: Path, rng: random.Random) -> None:
    """Have each text spoken by a voice of the split, and write the rows."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    voices, rows = VOICES[name], []
    for i, text in enumerate(texts):
        voice, file = voices[i % len(voices)], f"{name}/{i:04}.wav"
        speak(text, voice, rng.choice(SPEEDS), folder / file)
        rows.append({"audio": file, "text": text, "speaker": voice})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{folder / name}.jsonl: {len(rows)} recordings by {len(voices)} voices")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/data/dictation"), help="folder of the data")
    parser.add_argument("--train", type=int, default=160, help="sentences of training")
    parser.add_argument("--test", type=int, default=48, help="sentences of test")
    options = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        raise SystemExit("error: espeak-ng is not installed; run `apt-get install espeak-ng`, or your system's like.")
    rng = random.Random(0)
    train = list(sentences(PATTERNS, options.train, rng))
    test = [text for text in sentences(PATTERNS + UNSEEN * 2, 2 * options.test, rng) if text not in set(train)]
    write("train", train, options.output, rng)
    write("test", test[: options.test], options.output, rng)
    write("plain", PLAIN, options.output, rng)
    (options.output / "drugs.txt").write_text("\n".join(DRUGS) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
