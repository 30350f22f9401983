"""`dcal reproduce`: a table of the paper, trained again."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from dual_cross_attention.commands.output import show_log
from dual_cross_attention.configs.arguments import positional, read_options
from dual_cross_attention.errors import InputError
from dual_cross_attention.progress import make_console


@dataclass(kw_only=True)
class ReproduceOptions:
    """Trains the rows of a table of the paper by their recipes, and compares the outcome with the published numbers:
    mean and standard deviation over seeds, and the difference to the baseline with a 95 % interval (the wider of a t
    interval over paired seeds and a bootstrap over test images). Scores are those of the last epoch. The tables:
    table1, table2, ablations (GLCA, PWCA, both), queries (GLCA's local queries), distractors (PWCA's second image),
    depth (M, T, R).

    The command resumes: give it again after an interruption, or on several machines that share the output folder, which
    then train different rows. A training that fails is a row with its reason, and is tried again by the next call. The
    exit status is 1 if one has failed."""

    EXAMPLE: ClassVar = """
        dcal reproduce ablations --scale cpu                  # the machinery, on synthetic data, minutes on a CPU
        dcal reproduce table1 --rows 'cub-deit_tiny-*' --data_root DIR --train_flags "--num_workers 8"
    """
    GROUPS: ClassVar = {
        "what to train": "rows seeds scale data_root distractor_root train_flags",
        "output": "output_dir table_only",
    }

    table: Literal["table1", "table2", "ablations", "queries", "distractors", "depth"] = positional("TABLE")
    """table1, table2, ablations, queries, distractors or depth."""
    rows: tuple[str, ...] = ()
    """Names of rows, or patterns such as 'cub-*'; the baselines of the chosen rows are added. Not given: all rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs of each row."""
    scale: Literal["paper", "cpu"] = "paper"
    """paper: the recipes, which need the datasets and a GPU for days; cpu: the same rows on the synthetic toy datasets
    with a small backbone, for minutes. The scores of cpu are not comparable with published ones."""
    data_root: str | None = None
    """Folder that contains the folders of the datasets, for --scale paper. null: $DCAL_DATA and ./data."""
    distractor_root: str | None = None
    """Folder of other images, for the row of the table distractors whose second image is of another dataset."""
    train_flags: str = ""
    """Further flags of dcal train for all runs, in one string, such as "--batch_size 8 --gradient_accumulation_steps
    2". They cannot change what the rows of the table are about, such as the backbone."""
    output_dir: str | None = None
    """Folder of the runs and of the tables, TABLE.md and TABLE.csv. null: runs/reproduce, or runs/reproduce-cpu."""
    table_only: bool = False
    """Train nothing; write the tables from the runs that are there."""


def run(arguments: list[str]) -> int:
    """Trains what is missing and prints the table; 1 if a training failed."""
    options = read_options(ReproduceOptions, "reproduce", arguments)
    console = make_console()
    show_log(console)
    from dual_cross_attention.reproduction.plan import make_plan
    from dual_cross_attention.reproduction.summary import write_summary
    from dual_cross_attention.reproduction.sweep import run_sweep

    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise InputError(f"--seeds: expected different numbers, got {options.seeds}")
    folder = Path(options.output_dir or {"paper": "runs/reproduce", "cpu": "runs/reproduce-cpu"}[options.scale])
    plan = make_plan(options, folder)

    def write() -> str:
        return write_summary(plan.title, plan.rows, plan.notes, folder, options.table)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir: cannot make the folder '{folder}': {error.strerror}") from error
    failed = 0
    if not options.table_only:

        def on_message(line: str) -> None:
            write()  # so that a long sweep can be watched
            console.print(line, markup=False, soft_wrap=True)

        result = run_sweep(plan.trainings, on_message)
        failed = result.failed
        if result.elsewhere:
            console.print(f"{result.elsewhere} of the trainings are running in other processes: rows of theirs follow")
    console.print(write(), markup=False, soft_wrap=True)
    console.print(f"{folder / options.table}.md, {folder / options.table}.csv", markup=False, soft_wrap=True)
    return 1 if failed else 0
