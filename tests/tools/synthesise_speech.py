"""Write synthetic speech in the style of AN4: spelled names, digits, dates and control words, as FLAC and a manifest.

    synthesise_speech.py --set train --out DIR --utterances 3200 --seed 1 [--pico DIR]

The speech engines are programs, not Python packages: `apt-get install flite espeak-ng festival festvox-kallpc16k
festvox-kdlpc16k` (the demo needs the first two); numpy, scipy and soundfile come beside. `--pico` names a folder with
SVOX Pico built as libpico.so and its language files; its two voices speak in the training set only. Build it from the
source package ttspico 0.3.2 on PyPI (Apache 2.0):

    gcc -O2 -w -shared -fPIC -Ipicopi/pico/tts -Ipicopi/pico/lib picopi/pico/*/*.c -lm -o DIR/libpico.so
    cp picopi/pico/lang/en-* DIR

Three sets (train, heldout, demo) share no text but the single control words; train shares no voice with the others.
"""

# ruff: noqa: SIM905  (lists of words are read as text)
from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

RATE_HZ = 16000
SETS = {"train": range(4, 16), "heldout": range(2, 4), "demo": range(0, 2)}  # which sixteenths of all texts are whose

FIRST = """adam alan albert alice amanda amy andrea andrew angela ann anthony arthur barbara benjamin betty beverly bob
brenda brian bruce carl carol catherine charles cheryl chris cindy craig cynthia daniel david deborah dennis diane
donald donna dorothy douglas edward elaine elizabeth emily eric ernest eugene evelyn frances frank fred gary george
gerald gloria grace greg harold harry heather helen henry howard irene jack jacob james jane janet jason jean jeff
jennifer jerry jessica jim joan joe john jonathan joseph joyce juan judy julia karen kathy keith kenneth kevin kim
larry laura lawrence leonard linda lisa louis lynn margaret maria marie mark martha martin mary matthew michael nancy
nicholas norman pamela patricia paul peter phil philip rachel ralph raymond rebecca richard robert roger ronald rose
roy ruth samuel sandra scott sharon sheila stephen steve susan teresa theodore thomas tim tina tom victor vincent
virginia walter wayne wendy will xavier yvonne zachary""".split()
LAST = """abbott adler allen anderson bailey baker barrett becker bennett bishop black bowman brooks brown burke butler
carlson carter chandler chang clark cohen collins cooper cox cruz davis dixon doyle duncan dunn edwards elliott evans
farrell fisher fitzgerald fleming ford foster fox franklin fuller garcia gibson gomez gordon graham gray green griffin
gupta hall hamilton hansen harper hayes henderson hoffman holmes hughes hunter ingram jackson jacobs jenkins jensen
johnson jones kaplan kelly kennedy king klein kowalski kramer kumar lambert lee levine lewis lopez mackenzie marshall
mason mcdonald mcguire meyer miller mitchell moore morgan murphy myers newman nguyen nichols novak obrien oconnor olson
ortiz owens palmer parker patel perkins perry phillips porter powell price quinn ramirez reed reynolds rhodes rivera
roberts rodriguez rosenberg ross russell sanders schmidt schneider schultz schwartz shaw silva simpson smith snyder
stevens stone sullivan suzuki tanaka taylor thompson turner tucker vance vargas vaughn wagner walker wallace warren
watkins weaver weber webster weiss wheeler white williams wilson wong wright wyatt yamamoto young zimmerman
zuckerman""".split()
STREET = """aspen beacon beechwood birch bouquet braddock briar broadway carnegie cedar center chestnut church clinton
college craig darlington elm fairview fifth forest garfield grant grove highland hickory jefferson kentucky lakeview
laurel lexington liberty lincoln locust magnolia main maple market meadow monroe murray negley northumberland oak ocean
orchard park penn pine poplar prospect quincy ridge river rosewood shady spruce summit sunset sycamore taylor union
valley vernon victoria walnut washington wilkins willow woodlawn""".split()
CITY = """akron albany atlanta austin baltimore bedford boston boulder buffalo butler cambridge chicago cleveland
columbus dallas dayton denver detroit duluth erie evanston fargo greensburg harrisburg hartford houston indianapolis
jacksonville johnstown juneau kalamazoo knoxville lancaster lansing lexington louisville madison memphis miami
milwaukee monroeville nashville newark norfolk oakland omaha orlando philadelphia phoenix pittsburgh portland princeton
quincy raleigh reno richmond rochester sacramento scranton seattle syracuse tampa toledo topeka trenton tucson tulsa
utica wexford wheeling wichita wilmington worcester xenia york youngstown zanesville""".split()
DIGIT = "zero one two three four five six seven eight nine".split()
TEEN = "ten eleven twelve fourteen fifteen sixteen seventeen eighteen nineteen".split()  # AN4 has no thirteen
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTH = "january february march april may june july august september october december".split()  # and no november
ORDINAL = "first second third fourth fifth sixth seventh eighth ninth eleventh twelfth fifteenth eighteenth".split()
CONTROL = "yes no go start stop help repeat".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def digits(rng: np.random.Generator, count: int) -> list[str]:
    """`count` digits, one by one; a zero is said `oh` by most speakers, and by each in one way."""
    zero = "oh" if rng.random() < 0.7 else "zero"
    return [zero if d == 0 else DIGIT[d] for d in rng.integers(0, 10, count)]


def below_hundred(rng: np.random.Generator) -> list[str]:
    """A number from ten to ninety nine."""
    if rng.random() < 0.2:
        return [str(rng.choice(TEEN))]
    return [str(rng.choice(TENS))] + ([str(rng.choice(DIGIT[1:]))] if rng.random() < 0.8 else [])


def number(rng: np.random.Generator) -> list[str]:
    """A number as AN4's speakers say one: digit by digit, in pairs, or in full."""
    kind = rng.random()
    if kind < 0.45:
        return digits(rng, int(rng.integers(1, 5)))
    if kind < 0.75:
        return below_hundred(rng)
    if kind < 0.87:
        return below_hundred(rng) + below_hundred(rng)
    if kind < 0.94:
        return [*digits(rng, 1), *below_hundred(rng)]
    hundreds = [DIGIT[rng.integers(1, 10)], "hundred"] + (["and"] if rng.random() < 0.7 else []) + below_hundred(rng)
    return hundreds if rng.random() < 0.6 else [DIGIT[rng.integers(1, 10)], "thousand", *hundreds]


def letters(rng: np.random.Generator, fewest: int, most: int) -> list[str]:
    """Random letters, every one equally likely."""
    return [LETTERS[i] for i in rng.integers(0, 26, rng.integers(fewest, most + 1))]


def spelled(rng: np.random.Generator) -> list[str]:
    """A spelled first name, surname, street or city."""
    words = [FIRST, LAST, STREET, CITY][rng.choice(4, p=[0.33, 0.34, 0.13, 0.2])]
    name = str(rng.choice(words))
    if words is STREET and rng.random() < 0.5:
        name += str(rng.choice(["street", "drive", "road", "lane", "way"]))
    return list(name)


def date(rng: np.random.Generator) -> list[str]:
    """A date of birth: `june eleventh nineteen sixty seven` or `two fifteen sixty two`."""
    year = [str(rng.choice(TENS[2:])), str(rng.choice(DIGIT[1:]))]
    day = below_hundred(rng) if rng.random() < 0.6 else [str(rng.choice(DIGIT[1:]))]
    if rng.random() < 0.5:
        tens = [["twenty"], ["thirty", "first"]][int(rng.random() < 0.1)] if rng.random() < 0.3 else []
        ordinal = tens + ([str(rng.choice(ORDINAL[:9] if tens else ORDINAL))] if len(tens) < 2 else [])
        return [str(rng.choice(MONTH)), *ordinal, "nineteen", *year]
    while day[0] in TENS[2:] or day in (["thirty", d] for d in DIGIT[2:]):  # no day is above thirty one
        day = below_hundred(rng)
    return [str(rng.choice([*DIGIT[1:], "ten", "eleven", "twelve"])), *day, *year]


def sentence(rng: np.random.Generator, control_share: float) -> list[str]:
    """One utterance's words; the kinds come in the proportions of AN4's train transcripts."""
    if rng.random() < control_share:
        return [str(rng.choice(CONTROL))]
    kind = rng.choice(6, p=[0.34, 0.27, 0.09, 0.12, 0.11, 0.07])
    if kind == 0:
        return spelled(rng) if rng.random() < 0.8 else letters(rng, 3, 8)
    if kind == 1:
        return digits(rng, int(rng.choice([4, 5, 7], p=[0.3, 0.4, 0.3]))) if rng.random() < 0.8 else number(rng)
    if kind == 2:
        return ["enter", *number(rng)]
    if kind == 3:
        return [str(rng.choice(["rubout", "erase"])), *letters(rng, 4, 5), *number(rng)]
    return [*letters(rng, 4, 4), *number(rng)] if kind == 4 else date(rng)


def texts(name: str, count: int, seed: int) -> list[str]:
    """`count` texts of the set `name`: a text's checksum says whose it is, so sets share none but control words.

    Names come again in train, from other speakers; no text comes twice in the other sets.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    chosen: list[str] = []
    while len(chosen) < count:
        text = " ".join(sentence(rng, 0.08 if name == "train" else 0.005))
        mine = text in CONTROL or zlib.crc32(text.encode()) % 16 in SETS[name]
        if mine and (name == "train" or text not in chosen):
            chosen.append(text)
    return chosen


@dataclass(frozen=True)
class Voice:
    """One voice of one engine; `share` is its part of a set, relative to the others'."""

    engine: str
    name: str
    share: float


# One speaker stays on one side: kal speaks in flite and in festival, slt in both too.
TRAIN = [Voice("flite", "kal", 3), Voice("flite", "kal16", 4), Voice("flite", "awb", 12)]
TRAIN += [Voice("festival", "kal_diphone", 6), Voice("festival", "ked_diphone", 10)]
TRAIN += [
    Voice("espeak", f"{accent}+{variant}", share)
    for accent, share in [("en-us", 2.2), ("en-gb", 0.5), ("en-us-nyc", 0.5), ("en-gb-x-rp", 0.3)]
    for variant in ["m1", "m2", "m4", "m5", "m6", "m7", "f1", "f3", "f4", "f5", "klatt4", "belinda"]
]
PICO = [Voice("pico", "en-US", 16), Voice("pico", "en-GB", 11)]
DEMO = [
    Voice("flite", "slt", 4),
    Voice("flite", "rms", 4),
    Voice("espeak", "en-us+f2", 1),
    Voice("espeak", "en-us+m3", 1),
]
# How to write a letter so that an engine says its (American) name; each says the other letters right as they are.
SPELLING = {
    "flite": {"a": "lettera"},
    "festival": {"a": "lettera"},
    "pico": {"a": "eigh", "z": "zee"},
    "espeak": {"a": "[['eI]]", "z": "[[z'i:]]"},
}


def speak_pico(folder: str, language: str, text: str, speed: float, pitch: float) -> np.ndarray:
    """`text` said by Pico: samples in [-1, 1]. The engine is new each time: one that has spoken says it otherwise."""
    library = ctypes.CDLL(f"{folder}/libpico.so")
    u32, sound = ctypes.c_uint32, list[bytes]()
    kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, u32, u32, ctypes.c_int, ctypes.c_void_p, u32, ctypes.c_bool)

    def store(user: int, rate: int, form: int, channels: int, data: int, size: int, last: bool) -> bool:
        sound.append(ctypes.string_at(data, size))
        return True

    receive = kind(store)  # named, so that it lives as long as the engine
    library.TtsEngine_Create.restype = ctypes.c_void_p
    engine = ctypes.c_void_p(library.TtsEngine_Create(f"{folder}/".encode(), language.encode(), receive))
    library.TtsEngine_SetRate(engine, int(100 * speed))
    library.TtsEngine_SetPitch(engine, int(100 * pitch))
    library.TtsEngine_Speak(engine, text.encode(), None)
    library.TtsEngine_Destroy(engine)
    return np.frombuffer(b"".join(sound), np.int16) / 32768


def speak(voice: Voice, text: str, speed: float, pitch: float, pico_folder: str) -> np.ndarray:
    """`text` (words and commas, letters written for the engine) said by `voice`: mono samples in [-1, 1] at 16 kHz."""
    if voice.engine == "pico":
        return speak_pico(pico_folder, voice.name, text, speed, pitch)
    with tempfile.TemporaryDirectory() as folder:
        wav, notes = f"{folder}/out.wav", Path(folder) / "notes"
        if voice.engine == "flite":
            notes.write_text('"lettera" nil : ey1\n')
            command = ["flite", "-voice", voice.name, "-add_lex", str(notes), "-t", text, "-o", wav]
            command += ["--setf", f"duration_stretch={1 / speed:.3f}"]
        elif voice.engine == "festival":
            stretch = 1.25 / speed  # these voices talk fast
            notes.write_text(
                f'(voice_{voice.name}) (lex.add.entry \'("lettera" nil (((ey) 1))))'
                f"(Parameter.set 'Duration_Stretch {stretch:.3f})"
                f'(utt.save.wave (SynthText "{text}") "{wav}" \'riff)'
            )
            command = ["festival", "-b", str(notes)]
        else:
            command = ["espeak-ng", "-v", voice.name, "-w", wav, text]
            command += ["-s", str(int(165 * speed)), "-p", str(int(50 * pitch))]
        # glibc then hands out zeroed memory: festival reads some that it never wrote, and each run would differ
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "MALLOC_PERTURB_": "255"})
        samples, rate = soundfile.read(wav)
    return np.asarray(samples if rate == RATE_HZ else signal.resample_poly(samples, RATE_HZ, rate))


def tidy(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut silence: 0.1 to 0.3 s stay at either end, and no pause within is longer than a limit drawn per utterance."""
    frame = RATE_HZ // 100
    samples = samples[: len(samples) // frame * frame]
    level = np.abs(samples).reshape(-1, frame).max(1)  # (frames of 10 ms,)
    loud = np.flatnonzero(level > 0.005 * level.max())  # 46 dB below the peak: weak fricatives stay
    longest = int(rng.integers(9, 36))  # frames; above the closure of a stop
    quiet = np.arange(len(level)) - loud[np.maximum(np.searchsorted(loud, np.arange(len(level)), "right") - 1, 0)]
    kept = (quiet <= longest) & (np.arange(len(level)) >= loud[0]) & (np.arange(len(level)) <= loud[-1])
    ends = [np.zeros(int(rng.uniform(0.1, 0.3) * RATE_HZ)) for _ in range(2)]
    return np.concatenate([ends[0], samples.reshape(-1, frame)[kept].reshape(-1), ends[1]])


def colour(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make clean speech look recorded: a spectral tilt, at times a narrower band, a small room and background noise."""
    samples = signal.lfilter([1, rng.uniform(-0.6, 0.4)], [1], samples)
    if rng.random() < 0.5:
        band = [rng.uniform(40, 250), rng.uniform(4000, 7800)]
        samples = signal.sosfilt(signal.butter(2, band, "bandpass", fs=RATE_HZ, output="sos"), samples)
    if rng.random() < 0.4:
        room = rng.standard_normal(RATE_HZ // 5)
        room *= np.exp(-np.arange(RATE_HZ // 5) / (RATE_HZ * rng.uniform(0.02, 0.06)))
        room *= rng.uniform(0.1, 0.5) / np.linalg.norm(room)
        samples = samples + signal.fftconvolve(samples, room)[: len(samples)]
    if rng.random() < 0.75:
        noise = signal.lfilter([1], [1, -rng.uniform(0, 0.97)], rng.standard_normal(len(samples)))
        samples = samples + noise * samples.std() / noise.std() * 10 ** (-rng.uniform(15, 40) / 20)
    return samples


Row = tuple[str, str, Voice, float]  # file, text, voice, seconds of sound


def utterance(job: tuple[int, str], *, name: str, out: Path, seed: int, pico_folder: str) -> Row:
    """Say one text, write its file and return its row."""
    index, text = job
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), index])
    voices = (TRAIN + (PICO if pico_folder else [])) if name == "train" else DEMO
    shares = np.array([v.share for v in voices])
    voice = voices[rng.choice(len(voices), p=shares / shares.sum())]
    comma = rng.choice([0.0, 0.15, 0.5, 1.0])  # a comma is a pause: from fluent speech to one word at a time
    words = [SPELLING[voice.engine].get(word, word) for word in text.split()]
    written = " ".join(word + ("," if rng.random() < comma else "") for word in words[:-1]) + f" {words[-1]}"
    if name == "train":
        warp = rng.uniform(0.87, 1.15)  # moves pitch and formants: a larger or smaller speaker
        samples = speak(voice, written, rng.uniform(0.85, 1.3) / warp, rng.uniform(0.75, 1.3), pico_folder)
        samples = colour(tidy(signal.resample(samples, int(len(samples) / warp)), rng), rng)
        samples *= 10 ** (rng.uniform(-18, -2) / 20) / np.abs(samples).max()
    else:
        samples = tidy(speak(voice, written, rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), pico_folder), rng)
        samples *= 10 ** (rng.uniform(-12, -3) / 20) / np.abs(samples).max()
        # 11 bits of 16 (FLAC stores no bits that are always zero), dithered: no microphone gives exact zeros.
        samples = np.round(samples * 1024 + rng.uniform(-1, 1, len(samples))) / 1024
    file = f"{index:04d}-{voice.engine}-{voice.name}.flac"
    soundfile.write(out / file, samples, RATE_HZ, subtype="PCM_16", compression_level=1.0)
    return file, text, voice, len(samples) / RATE_HZ


def main() -> int:
    """Write one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, required=True, dest="name")
    parser.add_argument("--out", type=Path, required=True, help="folder for the FLAC files and manifest.tsv")
    parser.add_argument("--utterances", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pico", default="", help="folder with libpico.so and its language files (train only)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    say = partial(utterance, name=args.name, out=args.out, seed=args.seed, pico_folder=args.pico)
    with Pool() as pool:
        rows = list(pool.imap(say, enumerate(texts(args.name, args.utterances, args.seed)), chunksize=8))
    (args.out / "manifest.tsv").write_text("audio\ttext\n" + "".join(f"{file}\t{text}\n" for file, text, _, _ in rows))
    for voice, count in Counter(voice for _, _, voice, _ in rows).most_common():
        print(f"{voice.engine} {voice.name}: {count} utterances")
    print(f"{len(rows)} utterances, {sum(row[3] for row in rows):.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
