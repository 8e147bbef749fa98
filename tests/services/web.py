"""nginx, serving a folder."""

from chain import find, free_port, other_user

CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    types {{ text/html html; text/javascript js; application/wasm wasm; }}
    default_type application/octet-stream;
    sendfile on;
    keepalive_timeout 60s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {www};
        {location}
    }}
}}
"""


class Web:
    """Serves what is in `www`. `location` is one more of nginx's location blocks."""

    def __init__(self, place, location):
        user = other_user("www-data")
        folder = place.subfolder("nginx", user)
        self.www = place.subfolder("nginx/www", user)
        self.port = free_port()
        configuration = folder / "nginx.conf"
        text = CONFIGURATION.format(folder=folder, www=self.www, port=self.port, location=location)
        configuration.write_text(text)
        command = [find("nginx"), "-e", "stderr", "-p", folder, "-c", configuration]
        self.process = place.start("nginx", command, user=user)
        self.process.listens(self.port)
