"""A Cloud Storage bucket to read from, on this machine:
a folder, served over the part of Google's JSON API that reads objects.

With the environment that `serve` yields, gcsfs and TensorStore
ask this server, and gs://BUCKET/… is the folder.
"""

import contextlib
import http.server
import json
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = 'pod'


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
  """Serves the files below `folder` as objects of gs://pod;
  yields the environment variables that send clients here.
  """
  handler = type('Handler', (_Handler,), {'folder': folder})
  with _Server(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    yield {
      'STORAGE_EMULATOR_HOST': url,  # gcsfs
      # Otherwise gcsfs asks Google what kind of bucket this is.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'TENSORSTORE_GCS_HTTP_URL': url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',  # else TensorStore looks for a metadata server
    }
    server.shutdown()


class _Server(http.server.ThreadingHTTPServer):
  def handle_error(self, request, client_address):
    """Ignores clients that hang up, as kernels do when they end."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers GET for a list of objects, for an object's metadata, and for (part of) its bytes."""

  protocol_version = 'HTTP/1.1'
  folder: Path

  def do_GET(self):
    url = urlsplit(self.path)
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    _, found, path = url.path.partition(f'/storage/v1/b/{BUCKET}/o')
    if found and path in ('', '/'):
      return self._json(self._listed(query.get('prefix', ''), query.get('delimiter')))
    name = unquote(path.removeprefix('/'))
    if not found or not (self.folder / name).is_file():
      return self._json({'error': {'code': 404, 'message': f'no such object: {name}'}}, 404)
    if query.get('alt') == 'media':
      return self._bytes((self.folder / name).read_bytes(), name)
    return self._json(self._metadata(name))

  def _listed(self, prefix, delimiter):
    names = [
      path.relative_to(self.folder).as_posix()
      for path in sorted(self.folder.rglob('*'))
      if path.is_file()
    ]
    names = [name for name in names if name.startswith(prefix)]
    if not delimiter:
      return {'kind': 'storage#objects', 'items': [self._metadata(name) for name in names]}
    inside = lambda name: name[len(prefix) :].partition(delimiter)
    return {
      'kind': 'storage#objects',
      'items': [self._metadata(name) for name in names if not inside(name)[1]],
      'prefixes': sorted(
        {prefix + inside(name)[0] + delimiter for name in names if inside(name)[1]}
      ),
    }

  def _metadata(self, name):
    stat = (self.folder / name).stat()
    return {
      'kind': 'storage#object',
      'name': name,
      'bucket': BUCKET,
      'size': str(stat.st_size),
      'generation': str(zlib.crc32(name.encode()) + 1),
      'updated': '2026-01-01T00:00:00.000Z',
      'timeCreated': '2026-01-01T00:00:00.000Z',
      'storageClass': 'STANDARD',
    }

  def _bytes(self, contents, name):
    status, headers = 200, {'X-Goog-Generation': self._metadata(name)['generation']}
    if wanted := self.headers.get('Range'):
      first, _, last = wanted.removeprefix('bytes=').partition('-')
      begin = int(first) if first else max(len(contents) - int(last), 0)
      end = min(int(last) + 1, len(contents)) if first and last else len(contents)
      status, headers['Content-Range'] = 206, f'bytes {begin}-{end - 1}/{len(contents)}'
      contents = contents[begin:end]
    self._send(contents, status, {'Content-Type': 'application/octet-stream'} | headers)

  def _json(self, value, status=200):
    self._send(json.dumps(value).encode(), status, {'Content-Type': 'application/json'})

  def _send(self, contents, status, headers):
    self.send_response(status)
    for key, value in ({'Content-Length': str(len(contents))} | headers).items():
      self.send_header(key, value)
    self.end_headers()
    self.wfile.write(contents)

  def log_message(self, *arguments):
    pass
