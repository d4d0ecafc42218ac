#!/bin/sh
set -eu
workers=$(nproc)
touch /etc/nginx/nginx.conf
sed -i.bak -r "s/^(worker_processes)(.*)$/# \1\2\n\1 $workers;/" /etc/nginx/nginx.conf
while read -r word rest; do
    if [ "$word" = worker_processes ]; then
        echo "workers: $rest"
    fi
done < /etc/nginx/nginx.conf
