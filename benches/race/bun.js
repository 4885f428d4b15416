// Bun's own server, which is uWebSockets. Started as: bun bun.js PORT
Bun.serve({
    hostname: "127.0.0.1",
    port: Number(process.argv[2]),
    fetch(request, server) {
        if (server.upgrade(request)) return;
        return new Response("a WebSocket is wanted", { status: 426 });
    },
    websocket: {
        perMessageDeflate: false,
        sendPings: false,
        idleTimeout: 0,
        message(socket, message) {
            socket.send(message);
        },
    },
});
