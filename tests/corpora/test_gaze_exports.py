"""Gaze tables as exporters write them: their columns, origins, units, clocks and words for lost gaze."""

import pytest

from distill.corpora import open_corpus
from distill.run.errors import UsageError
from tests.corpora import writers
from tests.corpora.test_gaze_table import a_video, points_of

TIMES = ("10", "310")  # milliseconds: frames 0 and 3 of 10 per second
EXPORTS = {
    "Pupil Core": ["image,norm_pos_x,norm_pos_y,world_index,confidence", "walk,0.25,0.85,0,0.9", "walk,0.57,0.1,3,1", "walk,.5,.5,3,0.1"],
    "Pupil Core, on a surface": ["image,world_index,x_norm,y_norm,on_surf", "walk,0,0.25,0.85,True", "walk,3,0.57,0.1,True"],
    "Pupil Invisible or Neon": ["clip,frame,timestamp [ns],gaze x [px],gaze y [px]", "walk,0,17e17,50,15", "walk,3,17e17,114,90"],
    "Tobii Pro Lab": [
        "Recording timestamp [ms]\tParticipant name\tPresented Stimulus name\tEye movement type\tGaze point X [DACS px]\tGaze point Y "
        "[DACS px]\tGaze point X [MCS px]\tGaze point Y [MCS px]", "10\tP\twalk\tFixation\t900\t900\t50\t15",
        "100\tP\twalk\tSaccade\t900\t900\t70\t25", "310\tP\twalk\tFixation\t\t\t114\t90", "320\tP\twalk\tEyesNotFound\t\t\t\t",
    ],
    "Tobii Studio": [
        "ParticipantName\tMediaName\tRecordingTimestamp\tGazePointX (ADCSpx)\tGazePointY (ADCSpx)\tGazePointX (MCSpx)\tGazePointY (MCSpx)",
        "P\twalk.mp4\t10\t90\t95\t50\t15", "P\twalk.mp4\t310\t\t\t114\t90",
    ],
    "EyeLink Data Viewer": [
        "RECORDING_SESSION_LABEL\timage\tCURRENT_FIX_X\tCURRENT_FIX_Y\tCURRENT_FIX_START\tCURRENT_FIX_DURATION",
        "s\twalk\t50.0\t15.0\t10\t60", "s\twalk\t.\t.\t.\t.", "s\twalk\t114.0\t90.0\t310\t60",
    ],
    "SMI BeGaze": [
        "## [BeGaze]", "RecordingTime [ms];Stimulus;Participant;Category Right;Point of Regard Right X [px];Point of Regard Right Y [px]",
        "10,0;walk.mp4;P;Fixation;50,0;15,0", "50,0;walk.mp4;P;Blink;0,0;0,0", "60,0;walk.mp4;P;-;-;-",
        "310,0;walk.mp4;P;Fixation;114,0;90,0",
    ],
    "Gazepoint": [
        "MEDIA_ID,MEDIA_NAME,CNT,TIME(2024/06/13 11:07:59.703),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGV", "0,walk,0,0.010,1,0.25,0.15,1",
        "0,walk,1,0.2,2,0.7,0.7,0", "0,walk,2,0.310,3,0.57,0.9,1",
    ],
    "iMotions": [
        "#METADATA,,,,", "#DATA,,,,", "Row,Timestamp,SourceStimuliName,Gaze X,Gaze Y", "1,10,walk,50,15", "2,50,walk,-1,-1",
        "3,310,walk,114,90",
    ],
}  # fmt: skip


@pytest.mark.parametrize("exporter", EXPORTS)
def test_exporters_are_recognised_by_their_columns(tmp_path, exporter):
    writers.video(tmp_path / "walk.mp4", 10, 10.0, (100, 200))
    (tmp_path / "gaze.csv").write_text("\r\n".join(EXPORTS[exporter]), encoding="utf-8")
    corpus = open_corpus("gaze-table", tmp_path)
    placed = {t: [place[:2] for place in points_of(corpus["walk"], t)] for t in range(10)}
    assert {t: points for t, points in placed.items() if points} == {0: [(15, 50)], 3: [(90, 114)]}
    assert f"gaze.csv is read as an export of {exporter}: " in str(corpus.notes)


@pytest.mark.parametrize(("step", "unit"), [(10, "milli"), (10_000, "micro")])
def test_the_unit_that_tobii_leaves_out_is_read_from_the_steps(tmp_path, step, unit):
    rows = ["Media name\tRecording timestamp\tGaze point X\tGaze point Y", *(f"walk\t{step * t}\t{t}\t20" for t in range(100))]
    corpus = open_corpus("gaze-table", a_video(tmp_path, rows))
    assert len(points_of(corpus["walk"], 3)) == 10 and f"`Recording timestamp` of gaze.csv is read in {unit}seconds" in str(
        corpus.notes
    )
    assert "times of gaze.csv count from the start of the recording, and are taken as times in each video" in corpus.notes


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("Media name\tRecording timestamp\tGaze point X\tGaze point Y", "walk\t300\t10\t20", "in milliseconds or microseconds"),
        ("clip,start_timestamp,norm_pos_x,norm_pos_y", "walk,0.3,.5,.5", "`start_timestamp` of Pupil Core counts from a clock of its own"),
        ("MediaName,RecordingTimestamp,GazePointX (MCSpx),GazePointY (MCSpx)", "walk,65000,10,20", "run to 65 s, its video lasts 1.0 s"),
        ("MediaName,RecordingTimestamp,GazePointX (MCSpx),GazePointY (MCSpx)", "before,10,1,2;walk,500,10,20", "of the recording; add"),
    ],
)  # fmt: skip
def test_times_that_do_not_count_from_the_clip_are_refused(tmp_path, header, rows, message):
    with pytest.raises(UsageError, match=message):
        open_corpus("gaze-table", a_video(tmp_path, [header, *rows.split(";")]))
