"""The commands of ``course``. They may import all of :mod:`course_utils`, which never imports this package."""
