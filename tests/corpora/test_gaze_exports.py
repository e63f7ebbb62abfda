"""Gaze tables as exporters write them: their columns, origins, units, clocks and words for lost gaze."""

import cv2
import pytest

from distill.corpora import open_corpus
from distill.run.errors import UsageError
from tests.corpora import writers
from tests.corpora.test_gaze_table import a_video, points_of

# Gaze at row 15, column 50 in frame 0, and at row 90, column 114 in frame 3, of a video of 200x100 with 10 frames per second.
EXPORTS = {
    "Pupil Core": ["image,norm_pos_x,norm_pos_y,world_index,confidence", "walk,0.25,0.85,0,0.9", "walk,0.57,0.1,3,1", "walk,.5,.5,3,0.1"],
    "Pupil Core, on a surface": [
        "image,world_index,x_norm,y_norm,on_surf", "walk,0,0.25,0.85,True", "walk,3,0.57,0.1,True", "walk,3,0.5,0.5,False",
    ],
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


def test_gaze_off_a_surface_is_dropped_and_counted(tmp_path):
    rows = ["image,world_index,x_norm,y_norm,on_surf", "walk,0,0.25,0.85,True", "walk,0,0.5,0.5,False", "walk,3,0.5,0.6,False"]
    assert "points off the surface: 2 dropped, in 1 clip (walk: 2)" in open_corpus("gaze-table", a_video(tmp_path, rows)).notes


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


def test_positions_on_the_screen_are_moved_by_the_place_of_the_clip_there(tmp_path):
    header = "Presented Media name\tGaze point X\tGaze point Y\tPresented Media position X (DACSpx)\tPresented Media position Y (DACSpx)\t"
    rows = [header + "Presented Media width\tPresented Media height", "walk\t960\t540\t480\t300\t960\t480", "walk\t\t\t\t\t\t"]
    (tmp_path / "gaze.tsv").write_text("\n".join(rows), encoding="utf-16")
    assert cv2.imwrite(str(tmp_path / "walk.png"), writers.frame(1))
    corpus = open_corpus("gaze-table", tmp_path)
    assert (
        points_of(corpus["walk"], 0) == [(24, 40, "None")]
        and "moved and scaled by the place of the clip there" in corpus.notes[0]
    )


def test_positions_on_a_screen_larger_than_the_clip_are_refused(tmp_path):
    rows = ["image\tCURRENT_FIX_X\tCURRENT_FIX_Y", *(f"walk\t{20 * t}\t{10 * t}" for t in range(9))]
    (tmp_path / "gaze.txt").write_text("\n".join(rows), encoding="utf-8")
    assert cv2.imwrite(str(tmp_path / "walk.png"), writers.frame(1))
    with pytest.raises(
        UsageError, match="`CURRENT_FIX_X` is in pixels of the screen, and many lie outside the 80x48 pixels of walk; give"
    ):
        open_corpus("gaze-table", tmp_path)


def test_an_export_without_clips_is_of_the_one_clip_beside_it(tmp_path):
    writers.video(tmp_path / "world.mp4", 10, 10.0, (100, 200))
    rows = ["id,start_timestamp,duration,start_frame_index,end_frame_index,norm_pos_x,norm_pos_y,confidence"]
    rows += ["1,8107.5,200.0,3,5,0.25,0.85,0.99", "2,8108.5,200.0,6,5,0.25,0.85,0.2"]
    (tmp_path / "fixations.csv").write_text("\n".join(rows), encoding="utf-8")
    pupils = "pupil_timestamp,world_index,eye_id,confidence,norm_pos_x,norm_pos_y\n8107,3,0,1,0.5,0.5\n"
    (tmp_path / "pupil_positions.csv").write_text(pupils, encoding="utf-8")  # where the pupil was in the picture of the eye
    corpus = open_corpus("gaze-table", tmp_path)
    assert [t for t in range(10) if points_of(corpus["world"], t)] == [3, 4] and points_of(corpus["world"], 3) == [
        (15, 50, "None")
    ]
    assert corpus["world"].troubles == {"points that the tracker lost": 1} and "not found" not in str(corpus.notes)
    writers.video(tmp_path / "other.mp4", 10)
    with pytest.raises(UsageError, match=r"fixations\.csv has no column for the clip, and 2 images or videos lie beside it"):
        open_corpus("gaze-table", tmp_path)


def test_columns_added_to_an_export_as_the_refusals_say_are_used(tmp_path):
    header = "clip,world_timestamp,norm_pos_x,norm_pos_y,time_ms"
    corpus = open_corpus("gaze-table", a_video(tmp_path, [header, "walk,8107.1,0.5,0.25,310"]))
    assert points_of(corpus["walk"], 3) == [(36, 40, "None")]
    (tmp_path / "gaze.csv").unlink()
    header = "clip,CURRENT_FIX_X,CURRENT_FIX_Y,CURRENT_FIX_START,"
    for added, row in (("x_px,y_px", "12,22"), ("x_norm,y_norm", "0.15,0.46")):
        rows = [f"{header}{added},frame_index", f"walk,900,900,9999,{row},3"]
        assert points_of(open_corpus("gaze-table", a_video(tmp_path, rows, table="gaze.tsv"))["walk"], 3) == [(22, 12, "None")]
