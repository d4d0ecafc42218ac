import asyncio
import bz2
import concurrent.futures
import csv
import ctypes
import curses
import decimal
import email.message
import hashlib
import json
import linecache
import logging.config
import lzma
import multiprocessing
import pickle
import readline
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import traceback
import unittest
import urllib.request
import uuid
import xml.etree.ElementTree
import zipfile
import zlib
import zoneinfo

from helpers import greeting


def square(number):
    return number * number


def callback():
    """A closure of libffi's: memory that becomes executable."""
    libc = ctypes.CDLL("libc.so.6")
    order = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    numbers = (ctypes.c_int * 3)(3, 1, 2)
    libc.qsort(numbers, 3, ctypes.sizeof(ctypes.c_int), order(lambda a, b: a[0] - b[0]))
    assert list(numbers) == [1, 2, 3]


def files():
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(f"{folder}/a.zip", "w") as archive:
            archive.writestr("data.txt", "data")
        zipfile.ZipFile(f"{folder}/a.zip").read("data.txt")
        with open(f"{folder}/rows.csv", "w") as rows:
            csv.writer(rows).writerow([1, 2])
        list(csv.reader(open(f"{folder}/rows.csv")))
        with open(f"{folder}/state.pickle", "wb") as state:
            pickle.dump({"a": 1}, state)
        pickle.load(open(f"{folder}/state.pickle", "rb"))
        with open(f"{folder}/logging.json", "w") as config:
            json.dump({"version": 1}, config)
        logging.config.dictConfig(json.load(open(f"{folder}/logging.json")))
        database = sqlite3.connect(f"{folder}/a.db")
        database.execute("create table t (a)")
        database.commit()
    with tempfile.TemporaryFile() as unnamed:
        unnamed.write(b"data")


if __name__ == "__main__":
    callback()
    files()
    ssl.create_default_context()
    uuid.uuid1()
    for packed in zlib, bz2, lzma:
        assert packed.decompress(packed.compress(b"data")) == b"data"
    assert subprocess.run("cat < /etc/hostname | wc -l", shell=True, capture_output=True).returncode == 0
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(square, [1, 2]) == [1, 4]
    with concurrent.futures.ProcessPoolExecutor() as pool:
        assert list(pool.map(square, [3])) == [9]
    asyncio.run(asyncio.sleep(0))
    try:
        raise ValueError("to be shown with its source")
    except ValueError:
        traceback.print_exc(file=sys.stdout)
    linecache.getlines("/etc/passwd")
    print(urllib.request.urlopen("http://127.0.0.1:8000/main").read(), greeting("main"))
