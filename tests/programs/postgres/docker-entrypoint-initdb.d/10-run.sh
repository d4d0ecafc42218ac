#!/bin/bash
set -e
psql -v ON_ERROR_STOP=1 <<-SQL
	CREATE ROLE app LOGIN PASSWORD 'app';
	CREATE DATABASE app OWNER app;
SQL
