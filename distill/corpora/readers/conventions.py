"""What the columns of a gaze table mean: where an exporter's positions have their origin and unit, and what its clock counts from.

Names are compared by their letters and digits alone: `Gaze point X [MCS px]` is `gazepointxmcspx`. `{}` stands for x and y. A
name that is not here is not guessed at: a wrong axis turns the gaze upside down without a word.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# What positions are measured in; words for the user.
PIXELS = "pixels"
SCREEN = "pixels of the screen, right for clips shown over all of it in their own size"
FRACTIONS = "fractions of the size"
FROM_BELOW = "fractions of the size, counted from the bottom left corner"
BY_VALUE = ""  # pixels or fractions: the values decide
# What times are counted from.
CLIP, TRIAL, RECORDING, TRACKER = (
    "the start of the clip",
    "the start of the trial",
    "the start of the recording",
    "a clock of its own",
)


class Exporter(NamedTuple):
    """A program that writes gaze tables. `positions` in order of preference; `times` maps a name to its unit in seconds, 0 where the
    versions of the program differ, and to what it counts from; `durations` those of rows that are whole fixations to their unit. A
    header needs one of the columns `signs`, and none of `never`."""

    name: str
    source: str
    positions: dict[str, str]
    times: dict[str, tuple[float, str]]
    signs: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    durations: dict[str, float] = {}


EXPORTERS = (
    # Normalised space has its origin at the bottom left. pupil_positions.csv has the pupil in the eye camera under the same names.
    Exporter(
        "Pupil Core", "docs.pupil-labs.com/core/terminology, coordinate systems: 2D normalized space",
        {"normpos{}": FROM_BELOW}, dict.fromkeys(("gazetimestamp", "worldtimestamp", "starttimestamp"), (1, TRACKER)),
        never=("pupiltimestamp",), durations={"duration": 1e-3},
    ),
    Exporter(
        "Pupil Core, on a surface", "docs.pupil-labs.com/core/software/pupil-player, surface tracker",
        {"{}norm": FROM_BELOW}, dict.fromkeys(("gazetimestamp", "worldtimestamp"), (1, TRACKER)), signs=("onsurf", "gazetimestamp"),
    ),
    Exporter(
        "Pupil Invisible or Neon", "docs.pupil-labs.com/neon/neon-player/raw-data-exporter",
        {"gaze{}px": PIXELS, "fixation{}px": PIXELS}, {"timestampns": (1e-9, TRACKER), "starttimestampns": (1e-9, TRACKER)},
        signs=("timestampns", "starttimestampns"),
    ),
    # ADCS are pixels of the screen, MCS of the medium. Studio writes names without spaces.
    Exporter(
        "Tobii Studio", "Tobii Studio user's manual 3.4, data export",
        {"gazepoint{}mcspx": PIXELS, "fixationpoint{}mcspx": PIXELS, "gazepoint{}adcspx": SCREEN},
        {"recordingtimestamp": (1e-3, RECORDING)}, signs=("MediaName", "ParticipantName", "RecordingTimestamp"),
    ),
    # DACS are pixels of the screen. The timestamp was in ms, then in us; the newest versions name the unit.
    Exporter(
        "Tobii Pro Lab", "Tobii Pro Lab user's manual, data export",
        {"gazepoint{}mcspx": PIXELS, "gazepoint{}mcsnorm": FRACTIONS, "fixationpoint{}mcspx": PIXELS,
         "fixationpoint{}mcsnorm": FRACTIONS, "gazepoint{}dacspx": SCREEN, "gazepoint{}": SCREEN,
         "fixationpoint{}dacspx": SCREEN, "fixationpoint{}": SCREEN},
        {"recordingtimestampms": (1e-3, RECORDING), "recordingtimestampus": (1e-6, RECORDING), "recordingtimestamp": (0, RECORDING)},
    ),
    Exporter(
        "the Tobii Pro SDK", "Tobii Pro SDK, GazePoint: (0, 0) is the top left corner of the active display area",
        {"leftgazepointondisplayarea{}": FRACTIONS, "rightgazepointondisplayarea{}": FRACTIONS},
        {"systemtimestamp": (1e-6, TRACKER), "devicetimestamp": (1e-6, TRACKER)},
    ),
    Exporter(
        "EyeLink Data Viewer", "EyeLink Data Viewer user's manual, fixation and sample reports",
        {"currentfix{}": SCREEN, "averagegaze{}": SCREEN, "rightgaze{}": SCREEN, "leftgaze{}": SCREEN},
        {"currentfixstart": (1e-3, TRIAL), "timestamp": (1e-3, TRACKER)}, durations={"currentfixduration": 1e-3},
    ),
    # The Time of the IDF converter is in microseconds, as in DHF1K's exportdata_train.
    Exporter(
        "SMI BeGaze", "SMI BeGaze manual 3.7, export of raw data and of events",
        {"pointofregardbinocular{}px": SCREEN, "pointofregardright{}px": SCREEN, "pointofregardleft{}px": SCREEN,
         "rpor{}px": SCREEN, "lpor{}px": SCREEN, "fixationposition{}px": SCREEN, "visualintakeposition{}px": SCREEN},
        {"recordingtimems": (1e-3, RECORDING), "eventstarttrialtimems": (1e-3, TRIAL), "time": (1e-6, TRACKER)},
        durations={"eventdurationms": 1e-3},
    ),
    Exporter(
        "Gazepoint", "Gazepoint API 2.0, 5.4: a fraction of the screen, (0, 0) is top left",
        {"fpog{}": FRACTIONS, "bpog{}": FRACTIONS}, {"time": (1, CLIP)},
    ),
    Exporter(
        "iMotions", "iMotions help center, exported sensor data", {"gaze{}": SCREEN, "fixation{}": SCREEN},
        {"timestamp": (1e-3, RECORDING)}, signs=("sourcestimuliname",),
    ),
)  # fmt: skip
# Columns that were added to an exporter's by hand; Pupil has x_norm of its own, from the bottom left.
ADDED = Exporter("", "docs/corpora.md", {"{}px": PIXELS, "{}norm": FRACTIONS}, {}, never=("onsurf", "gazetimestamp"))
# Your own tables, and those that others publish.
ANY = Exporter(
    "", "docs/corpora.md",
    {
        **dict.fromkeys(("{}px", "{}pixel", "{}pixels", "{}pix", "gaze{}px", "fixation{}px", "fix{}px", "pos{}px", "por{}px"), PIXELS),
        **dict.fromkeys(("{}norm", "norm{}", "{}normalized", "{}normalised", "{}rel", "gaze{}norm", "fixation{}norm"), FRACTIONS),
        **dict.fromkeys(("{}", "gaze{}", "fix{}", "fixation{}", "pos{}", "{}pos", "por{}"), BY_VALUE),
    },
    {},
)  # fmt: skip
UNITS = {"": 0.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "s": 1.0, "sec": 1.0, "seconds": 1.0}
TIMES = ("time", "t", "timestamp", "onset", "start", "starttime", "starttimestamp", "fixationstart", "fixationstarttime")
TIME_UNITS = {f"{name}{unit}": seconds for name in TIMES for unit, seconds in UNITS.items()}
TIME_UNITS |= {name: UNITS[name] for name in ("ms", "us", "seconds")}
DURATIONS = ("duration", "dur", "fixationduration", "fixduration")
DURATION_UNITS = {f"{name}{unit}": seconds for name in DURATIONS for unit, seconds in UNITS.items()}
OTHERS = {
    "clip": "clip clipid clipname video videoid videoname image imageid imagename imagefile img stimulus stimulusname stimuli filename "
    "file media medianame presentedmedianame presentedstimulusname recordingmedianame sourcestimuliname",
    "frame": "frame frameindex framenumber frameid frameno framenr worldindex startframeindex videoframeindex",
    "observer": "observer observerid subject subjectid subj participant participantid participantname user userid viewer person "
    "recordingsessionlabel respondent respondentname",
    # Where the clip lay on the screen, in the screen's pixels.
    "left": "mediaposxadcspx presentedmediapositionxdacspx", "top": "mediaposyadcspx presentedmediapositionydacspx",
    "wide": "mediawidth presentedmediawidth presentedmediawidthpx", "high": "mediaheight presentedmediaheight presentedmediaheightpx",
    "order": "order index fixationindex fixationnumber fixationid fixnumber fixindex number currentfixindex",
}  # fmt: skip
COLUMN_OF = {name: column for column, names in OTHERS.items() for name in names.split()}
FROM_ZERO = {"frameindex", "worldindex", "startframeindex"}  # frames are numbered from 0
ON_SCREEN = ("left", "top", "wide", "high")
LOST, MOVING = "points that the tracker lost", "points of saccades and blinks"
OFF_SURFACE = "points off the surface"


def _moving(cell: str) -> bool:
    return plain(cell) in ("saccade", "blink", "eyesnotfound")


def _invalid(cell: str) -> bool:
    return cell.strip().lower() in ("0", "0.0", "false")


def _unsure(cell: str) -> bool:
    # Pupil's documentation of its exports: useful data has a confidence of at least 0.6.
    return float(cell.replace(",", ".") or 0) < 0.6


# Columns that say that a row holds no gaze at rest: of which positions (all where empty), what to call such rows, and the test.
MARKS: dict[str, tuple[tuple[str, ...], str, Callable[[str], bool]]] = {
    "eyemovementtype": ((), MOVING, _moving), "gazeeventtype": ((), MOVING, _moving), "category": ((), MOVING, _moving),
    "categorybinocular": (("pointofregardbinocular{}px",), MOVING, _moving),
    "categoryright": (("pointofregardright{}px", "pointofregardbinocular{}px"), MOVING, _moving),
    "categoryleft": (("pointofregardleft{}px",), MOVING, _moving), "fpogv": (("fpog{}",), LOST, _invalid),
    "bpogv": (("bpog{}",), LOST, _invalid), "confidence": (("normpos{}", "{}norm"), LOST, _unsure),
    "onsurf": (("{}norm",), OFF_SURFACE, _invalid),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The columns of a file and what they mean. Units are in seconds, 0 where not stated."""

    names: tuple[str, ...]  # as the header has them
    at: dict[str, int]  # where each recognised column is: clip, x, y, time, duration, and the keys of OTHERS
    exporter: str = ""  # "" where not known
    space: str = BY_VALUE
    from_zero: bool = False  # frames are numbered from 0; False: the values decide
    time_unit: float = 0.0
    clock: str = CLIP
    duration_unit: float = 0.0
    marks: tuple[tuple[int, str, Callable[[str], bool]], ...] = ()

    @property
    def lacks(self) -> list[str]:
        """Which of the columns that a gaze table needs are not there."""
        return [name for name in ("clip", "x", "y") if name not in self.at]

    def name(self, column: str) -> str:
        """The name of a column in the header."""
        return self.names[self.at[column]].strip()


def plain(name: str) -> str:
    """The letters and digits of a name, without the date or rate in brackets that Gazepoint adds: TIME(2020/01/31 12:00:00.000)."""
    name = re.sub(r"\((f=|\d+/).*\)$", "", name.strip()).lower().replace("\u03bc", "u").replace("\u00b5", "u")
    return re.sub(r"[^a-z0-9]", "", name)


def recognise(names: list[str]) -> Columns:
    """What the columns of a header mean. The exporter is the first whose positions are all there."""
    places: dict[str, int] = {}
    for i, name in enumerate(names):
        places.setdefault(plain(name), i)
    at: dict[str, int] = {}
    for name, i in places.items():
        if name in COLUMN_OF:
            at.setdefault(COLUMN_OF[name], i)
    exporter, pattern = _positions(places, {*places, *(name.strip() for name in names)})
    if not pattern:
        return Columns(tuple(names), at)
    space = exporter.positions[pattern]
    if space != SCREEN or not set(ON_SCREEN) <= set(at):
        at = {name: i for name, i in at.items() if name not in ON_SCREEN}
    at |= {axis: places[pattern.format(axis)] for axis in "xy"}
    unit, clock = 0.0, CLIP
    if time := _time(places, exporter):
        at["time"], (unit, clock) = places[time], exporter.times.get(time, (TIME_UNITS.get(time, 0.0), CLIP))
    durations = DURATION_UNITS | exporter.durations
    duration = next((name for name in places if name in durations), "")
    # Pupil's fixations on a surface have a row per frame, and the duration of iMotions is that of the stimulus.
    if duration and "worldindex" not in places and exporter.name != "iMotions":
        at["duration"] = places[duration]
    marks = tuple(
        (places[name], reason, test)
        for name, (patterns, reason, test) in MARKS.items()
        if name in places and (not patterns or pattern in patterns)
    )
    from_zero = "frame" in at and plain(names[at["frame"]]) in FROM_ZERO
    meaning = (exporter.name, space, from_zero, unit, clock, durations.get(duration, 0.0), marks)
    return Columns(tuple(names), at, *meaning)


def _time(places: dict[str, int], exporter: Exporter) -> str:
    """The name of the column of the time: one that states its unit and counts from the clip was added to the exporter's by hand."""
    own = [name for name in places if name in TIME_UNITS and name not in exporter.times]
    added = [name for name in own if TIME_UNITS[name]]
    return next(iter([*added, *(name for name in exporter.times if name in places), *own]), "")


def _positions(places: dict[str, int], known: set[str]) -> tuple[Exporter, str]:
    """The exporter and the pattern of its positions; an empty pattern if the header has no positions that are known."""
    for exporter in (ADDED, *EXPORTERS, ANY):
        if (not exporter.signs or known & set(exporter.signs)) and not known & set(exporter.never):
            for pattern in exporter.positions:
                if pattern.format("x") in places and pattern.format("y") in places:
                    return exporter, pattern
    return ANY, ""
