// The page of the API: Swagger UI on this server's own description of itself.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#ui", deepLinking: true });
