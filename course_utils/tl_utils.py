"""Names for dataset adaptation, metrics, logging and checkpoints, in one place.

This module contains no code of its own. It hands on names that live in other modules:

=====================  =============================================================  ================================
name                   what it does                                                   home
=====================  =============================================================  ================================
**dataset adaptation**
``open_dataset``       open a data set by name, a folder or a list; split it          ``datasets``
``open_csv``           open a CSV file of files and labels                            ``datasets``
``in_memory``          run the transform once per picture and keep the tensors        ``datasets``
``few_per_class``      take the same small number of samples of every class           ``datasets``
``eval_transform``     resize, crop and normalise as the pre-trained weights need it  ``transforms``
``train_transform``    the same, with random changes (augmentation)                   ``transforms``
``denormalise``        undo the normalisation, to look at the pictures                ``transforms``
``check_transform``    list how a transform differs from that of the weights          ``experiments.transform_checks``
**metrics**
``evaluate``           predict every sample of a data set; returns a Report           ``evaluation``
``Report``             accuracy, precision, recall, F1, confusions, intervals         ``evaluation``
``plot_confusion``     draw the confusion matrix                                      ``evaluation``
``plot_mistakes``      draw the wrong answers with the highest confidence             ``evaluation``
``compare_models``     test two models on the same samples (paired)                   ``evaluation``
``wilson_interval``    interval of an accuracy                                        ``evaluation``
``majority_baseline``  number of right answers by the most frequent class             ``evaluation``
**logging**
``list_runs``          list the runs that ``fit`` has logged                          ``engine.runs``
``load_run``           read one run: settings, history, reports, network              ``engine.runs``
``compare_runs``       show the settings and results of several runs side by side     ``engine.runs``
``add_report``         store a test report with a run                                 ``engine.runs``
**checkpoints**
``read_state_dict``    read a file of weights, as ``load_pretrained`` does            ``common.weight_files``
``load_pretrained``    build a network with pre-trained or your own weights           ``pretrained_models``
=====================  =============================================================  ================================

``fit(..., resume=True)`` writes a checkpoint after every epoch and goes on from it; ``load_run(name).model()`` builds
the network of a run with its best weights.
"""

from course_utils.common.weight_files import read_state_dict
from course_utils.datasets import few_per_class, in_memory, open_csv, open_dataset
from course_utils.engine.runs import add_report, compare_runs, list_runs, load_run
from course_utils.evaluation import (
    Report,
    compare_models,
    evaluate,
    majority_baseline,
    plot_confusion,
    plot_mistakes,
    wilson_interval,
)
from course_utils.experiments.transform_checks import check_transform
from course_utils.pretrained_models import load_pretrained
from course_utils.transforms import denormalise, eval_transform, train_transform

__all__ = [
    "Report",
    "add_report",
    "check_transform",
    "compare_models",
    "compare_runs",
    "denormalise",
    "eval_transform",
    "evaluate",
    "few_per_class",
    "in_memory",
    "list_runs",
    "load_pretrained",
    "load_run",
    "majority_baseline",
    "open_csv",
    "open_dataset",
    "plot_confusion",
    "plot_mistakes",
    "read_state_dict",
    "train_transform",
    "wilson_interval",
]
