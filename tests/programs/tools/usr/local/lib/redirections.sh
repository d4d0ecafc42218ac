while read -r name; do
    read -r other < "$2"
done < "$1"
exec 3< "$1"
{ read -r first; } 3< "$2" <&3
exec 3<&-
exec 5< "$1" < "$2"
read -r line
contents=$(cat < "$1")
cat << HERE > /tmp/here
$first $line $other ${#contents}
HERE
. /usr/local/lib/functions.sh
