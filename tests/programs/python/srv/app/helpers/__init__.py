from .words import WORD


def greeting(path):
    return f"{WORD} {path}\n"
