"""What the ``course`` command does. It may import all of :mod:`course_utils`, which never imports it."""
